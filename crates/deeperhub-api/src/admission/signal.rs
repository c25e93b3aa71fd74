//! Commands to the tasks of connections.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

/// Command to a connection's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Command {
    /// Keep serving.
    Continue,
    /// Close after the current request, since the server stops.
    Drain,
    /// Close unless a request has arrived.
    CloseIfIdle,
    /// Close now.
    Kill,
}

impl Command {
    pub(super) fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Continue,
            1 => Self::Drain,
            2 => Self::CloseIfIdle,
            _ => Self::Kill,
        }
    }
}

/// Channel for commands to a connection's task.
#[derive(Debug, Default)]
pub(super) struct Signal {
    pub(super) command: AtomicU8,
    pub(super) waker: Mutex<Option<Waker>>,
}

impl Signal {
    pub(super) fn send(&self, command: Command) {
        self.command.fetch_max(command as u8, Ordering::AcqRel);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
