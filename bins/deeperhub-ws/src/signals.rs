//! The signals that a server listens to.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// From now on these signals no longer end the process by themselves.
///
/// # Errors
///
/// The system does not let this process handle them.
pub(crate) fn listen() -> io::Result<(Stops, HangUps)> {
    let stops =
        Stops { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    Ok((stops, HangUps(signal(SignalKind::hangup())?)))
}

/// SIGTERM and SIGINT: they end the server.
#[derive(Debug)]
pub(crate) struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    /// Waits for one, and names it. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            else => std::future::pending().await,
        }
    }
}

/// SIGHUP: files are to be read again.
#[derive(Debug)]
pub(crate) struct HangUps(Signal);

impl HangUps {
    /// Waits for one. Cancel-safe.
    pub(crate) async fn recv(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}
