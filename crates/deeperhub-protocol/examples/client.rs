//! A client that subscribes to a topic, publishes to it, and prints the messages of the server.
//!
//! Start a hub, then run `cargo run -p deeperhub-protocol --example client ws://127.0.0.1:8080/ws`.

use std::error::Error;
use std::io::{Write, stdout};
use std::net::TcpStream;

use deeperhub_protocol::{RawJson, Topic};

fn main() -> Result<(), Box<dyn Error>> {
    run(&std::env::args().nth(1).ok_or("usage: client ws://127.0.0.1:8080/ws")?, &mut stdout())
}

pub(crate) fn run(url: &str, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let uri: tungstenite::http::Uri = url.parse()?;
    let stream = TcpStream::connect(uri.authority().ok_or("the URL has no host")?.as_str())?;
    let (mut socket, _) = tungstenite::client(url, stream)?;

    // The same rules as on the server: an invalid topic or payload is an error before it is sent.
    let (topic, goal) = (Topic::parse("sports.football")?, RawJson::parse(r#"{"score":"2:1"}"#)?);
    socket.send(format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}"}}}}"#).into())?;
    let data = format!(r#"{{"topic":"{topic}","message":{goal}}}"#);
    // Only a publish with an id gets a `published` reply.
    socket.send(format!(r#"{{"type":"publish","id":1,"data":{data}}}"#).into())?;

    // `welcome`, `subscribed`, `message` and `published`. The socket answers pings itself.
    let texts = std::iter::repeat_with(|| socket.read()).filter(|read| !matches!(read, Ok(m) if m.is_ping()));
    texts.take(4).try_for_each(|read| Ok(writeln!(out, "{}", read?)?))
}
