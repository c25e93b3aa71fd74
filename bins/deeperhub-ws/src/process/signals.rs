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

/// Installs the handlers. From then on, these signals are queued until they are received, instead
/// of ending the process. SIGPIPE needs no handler, because the standard library ignores it.
///
/// Must be called in the context of a runtime.
///
/// # Errors
///
/// If the system refuses a handler.
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
            _file_size: signal(SignalKind::from_raw(FILE_SIZE))?,
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

/// SIGHUP, which reloads settings, keys and certificates.
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

/// Number of SIGXFSZ on all systems that the program supports.
const FILE_SIZE: i32 = 25;

/// SIGUSR1 and SIGUSR2, which tools send to other programs to reopen logs or to upgrade. Without a
/// handler, they would end this process. So would SIGXFSZ: with a handler, a write over the limit of
/// file sizes fails like on a full disk.
#[derive(Debug)]
pub(crate) struct IgnoredSignals {
    one: Signal,
    two: Signal,
    _file_size: Signal,
}

impl IgnoredSignals {
    /// Logs each of these signals, until the future is dropped.
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
