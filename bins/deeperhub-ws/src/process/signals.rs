//! Signals that a server handles.

use std::convert::Infallible;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// The signals that a server handles.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) stops: StopSignals,
    pub(crate) reload_signals: ReloadSignals,
    pub(crate) ignored: IgnoredSignals,
}

/// Installs the handlers: from now on, these signals no longer end the process but are kept until
/// received. The standard library ignores SIGPIPE.
///
/// Must be called in the context of a runtime.
///
/// # Errors
///
/// The system refuses the handlers.
pub(crate) fn listen() -> io::Result<Signals> {
    Ok(Signals {
        stops: StopSignals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        },
        reload_signals: ReloadSignals(signal(SignalKind::hangup())?),
        ignored: IgnoredSignals {
            one: signal(SignalKind::user_defined1())?,
            two: signal(SignalKind::user_defined2())?,
        },
    })
}

/// SIGTERM and SIGINT, which stop the server.
#[derive(Debug)]
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Waits for a signal and returns its name. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            else => std::future::pending().await,
        }
    }
}

/// SIGHUP, which reloads files.
#[derive(Debug)]
pub(crate) struct ReloadSignals(Signal);

impl ReloadSignals {
    /// Waits for a signal. Cancel-safe.
    pub(crate) async fn recv(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// SIGUSR1 and SIGUSR2, which ask other programs to reopen logs or to upgrade. Unhandled, they
/// would end this process.
#[derive(Debug)]
pub(crate) struct IgnoredSignals {
    one: Signal,
    two: Signal,
}

impl IgnoredSignals {
    /// Logs each of these signals.
    pub(crate) async fn log(mut self) -> Infallible {
        loop {
            let signal = tokio::select! {
                Some(()) = self.one.recv() => "SIGUSR1",
                Some(()) = self.two.recv() => "SIGUSR2",
                else => return std::future::pending().await,
            };
            info!(signal, "Signal ignored");
        }
    }
}
