//! A server for one connection over `std::net`, and a client that sends it two messages.
//!
//! Run with `cargo run -p deeperhub-protocol --example one_connection`. A real server would serve
//! many connections per thread, and process their bytes as [`Connection::receive`] does.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use deeperhub_protocol::frame::{self, FrameDecoder, FrameLimits, Incoming};
use deeperhub_protocol::handshake::{Parsed, Refusal, Request, write_accept};
use deeperhub_protocol::message::{ClientMessage, Command, ServerMessage};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || serve(listener.accept()?.0));

    let (mut client, _) = tungstenite::client(format!("ws://{address}/ws"), TcpStream::connect(address)?)?;
    for message in [r#"{"type":"echo","id":1,"data":{"any":"JSON"}}"#, r#"{"type":"dance","id":2}"#] {
        client.send(message.into())?;
        println!("{message}\n  -> {}", client.read()?);
    }
    client.close(None)?;
    while client.read().is_ok() {}
    server.join().expect("the server does not panic")?;
    Ok(())
}

/// Moves bytes between the socket and the connection.
fn serve(mut socket: TcpStream) -> std::io::Result<()> {
    let mut connection = Connection::Handshake(Vec::new());
    let (mut scratch, mut answer) = ([0; 4096], Vec::new());
    while !matches!(connection, Connection::Closed) {
        let read = socket.read(&mut scratch)?;
        if read == 0 {
            break;
        }
        connection = connection.receive(&mut scratch[..read], &mut answer);
        socket.write_all(&answer)?;
        answer.clear();
    }
    Ok(())
}

/// The state of a connection between reads.
enum Connection {
    /// The received part of the request head.
    Handshake(Vec<u8>),
    Open(FrameDecoder),
    Closed,
}

impl Connection {
    /// Processes the bytes of one read, and appends the bytes to send to `answer`.
    fn receive(self, input: &mut [u8], answer: &mut Vec<u8>) -> Self {
        match self {
            Self::Handshake(mut head) => {
                head.extend_from_slice(input);
                match open(&mut head, answer) {
                    Ok(Some(open)) => open,
                    Ok(None) => Self::Handshake(head),
                    Err(refusal) => {
                        refusal.write(answer);
                        Self::Closed
                    }
                }
            }
            Self::Open(decoder) => talk(decoder, input, answer),
            Self::Closed => self,
        }
    }
}

/// Accepts the handshake. Returns `None` while the head is incomplete.
fn open(buffer: &mut [u8], answer: &mut Vec<u8>) -> Result<Option<Connection>, Refusal> {
    let Parsed::Complete { request, head_bytes } = Request::parse(buffer)? else { return Ok(None) };
    let key = request.check_upgrade()?;
    if request.path() != "/ws" {
        return Err(Refusal::not_found());
    }
    write_accept(answer, &key, None, None);
    // The first frames may follow the request in the same read.
    Ok(Some(talk(FrameDecoder::new(), &mut buffer[head_bytes..], answer)))
}

/// Replies to all messages in `input`.
fn talk(mut decoder: FrameDecoder, input: &mut [u8], answer: &mut Vec<u8>) -> Connection {
    let limits = FrameLimits::default();
    let mut pos = 0;
    loop {
        match decoder.next(&limits, input, &mut pos) {
            Ok(Some(Incoming::Text(text))) => reply(text, answer),
            Ok(Some(Incoming::Ping(payload))) => frame::write_pong(answer, payload),
            Ok(Some(Incoming::Binary(_) | Incoming::Pong(_))) => {}
            Ok(Some(Incoming::Close(body))) => {
                frame::write_close(answer, body.map(|(code, _)| code), "");
                return Connection::Closed;
            }
            Ok(None) => return Connection::Open(decoder),
            Err(error) => {
                let reason = error.close_reason();
                frame::write_close(answer, Some(reason.code().as_u16()), reason.text());
                return Connection::Closed;
            }
        }
    }
}

/// Replies to one message.
fn reply(text: &str, answer: &mut Vec<u8>) {
    match ClientMessage::parse(text) {
        Ok(ClientMessage { id, command, .. }) => match command {
            Command::Echo { data } => ServerMessage::Echo { id, data }.write_frame(answer),
            Command::Ping => ServerMessage::Pong { id }.write_frame(answer),
            // This example has no topics or tokens.
            _ => {}
        },
        Err(error) => error.to_message().write_frame(answer),
    }
}
