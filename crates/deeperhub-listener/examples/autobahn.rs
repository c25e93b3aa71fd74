//! An echo server for conformance suites such as Autobahn: `autobahn --port 9001`.
//!
//! It allows messages of 16 MiB and 65,536 fragments, serves every path and sends no pings. It
//! compresses every message, however short, to clients that offer compression.
//! `--no-compression` declines such offers. `--client-context-takeover` lets clients refer to their
//! earlier messages.

use std::error::Error;
use std::time::Duration;

use deeperhub_listener::{Config, Context, Listener, Message, ReconnectTo, Session, accept_all};

struct Echo;

impl Session for Echo {
    type WorkerState = ();

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, ()>) {
        cx.reply_message(message);
    }
}

/// Reads the arguments into `config` and returns the port, by default 0. Returns `None` if an
/// argument is unknown.
fn parse_arguments(mut arguments: impl Iterator<Item = String>, config: &mut Config) -> Option<u16> {
    let mut port = 0;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--port" => port = arguments.next()?.parse().ok()?,
            "--no-compression" => config.compression.enabled = false,
            "--client-context-takeover" => config.compression.client_context_takeover = true,
            _ => return None,
        }
    }
    Some(port)
}

fn main() -> Result<(), Box<dyn Error>> {
    serve(std::env::args().skip(1))
}

/// Serves until Ctrl+C.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn serve(arguments: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let mut config = Config::default()
        .paths(Vec::new())
        .max_message_bytes(16 << 20)
        .max_queue_bytes(256 << 20)
        // A suite that waits for a reply mistakes a ping for it.
        .ping_interval(Duration::ZERO);
    config.compression.threshold_bytes = 0;
    let port = parse_arguments(arguments, &mut config)
        .ok_or("usage: autobahn [--port N] [--no-compression] [--client-context-takeover]")?;
    let listener = Listener::builder(accept_all(|| Echo)).config(config).bind(([127, 0, 0, 1], port))?;
    println!("listening on ws://{}", listener.local_addr());
    tokio::signal::ctrl_c().await?;
    listener.drain(Duration::from_secs(2), ReconnectTo::ThisNode).await;
    listener.stop().await;
    Ok(())
}
