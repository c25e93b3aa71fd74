//! A WebSocket server that answers every message with itself: `echo --port 9001`.
//!
//! It speaks the whole of RFC 6455 and RFC 7692 with generous limits (messages of 16 MiB, 65,536 fragments), so a
//! conformance suite can be pointed at it. With clients that offer compression it compresses every message, however
//! short; `--no-compression` declines such offers, `--client-context-takeover` lets clients refer to their earlier
//! messages.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::task::{self, Poll};
use std::time::Duration;

use deeperhub_listener::{
    Accepted, Application, Config, Connections, Context, Listener, Message, Metrics, Peer, ReturnTo, Session,
    WorkerState,
};
use deeperhub_metrics::Cells;
use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::{Refusal, Request};

struct Echo;

/// What a worker keeps for all its sessions: nothing here.
struct NoState;

impl Application for Echo {
    type WorkerState = NoState;
    type Session = Self;

    fn worker_state(&self, _worker: usize) -> NoState {
        NoState
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<Self>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: Self, subprotocol: None }))
    }
}

impl WorkerState<Echo> for NoState {
    fn poll(&mut self, _cx: &mut task::Context<'_>, _connections: &mut Connections<'_, Echo>) -> Poll<()> {
        Poll::Pending
    }
}

impl Session for Echo {
    type WorkerState = NoState;

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, NoState>) {
        cx.reply(|out| match message {
            Message::Text(text) => frame::write_text(out, text),
            Message::Binary(bytes) => frame::write_binary(out, bytes),
        });
    }
}

/// The port, 0 if none is named; `None` for arguments that are not known.
fn read_arguments(mut arguments: impl Iterator<Item = String>, config: &mut Config) -> Option<u16> {
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut config = Config::default();
    config.compression.threshold_bytes = 0;
    let Some(port) = read_arguments(std::env::args().skip(1), &mut config) else {
        eprintln!("usage: echo [--port N] [--no-compression] [--client-context-takeover]");
        return ExitCode::from(2);
    };
    config.paths.clear();
    config.max_message_bytes = 16 << 20;
    config.max_queue_bytes = 256 << 20;
    // A suite that waits for its answers takes a ping for one of them.
    config.ping_interval = Duration::ZERO;
    let cells = Cells::new(config.workers);
    let metrics = Metrics::new(&cells);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listener = match Listener::start(address, config, Echo, &cells, metrics) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("echo: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("listening on ws://{}", listener.local_addr());
    if tokio::signal::ctrl_c().await.is_ok() {
        listener.drain(Duration::from_secs(2), ReturnTo::ThisNode).await;
    }
    listener.stop().await;
    ExitCode::SUCCESS
}
