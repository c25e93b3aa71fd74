//! Substitutes for systems other than Linux, which lack `io_uring` and Linux's `TCP_INFO`. Their
//! functions return [`Unsupported`](io::ErrorKind::Unsupported).

use std::io;
use std::os::fd::BorrowedFd;

#[cfg(feature = "ring")]
use crate::{RecvOp, SendOp};

/// The send progress of a TCP connection. It is never available on this system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendProgress {
    /// Number of bytes that the peer's kernel has acknowledged since the start of the connection.
    pub acknowledged: u64,
    /// `true` if the local kernel holds bytes that it has not sent, or that the peer has not
    /// acknowledged.
    pub is_outstanding: bool,
}

/// Fails, because the send progress of a connection is available only on Linux.
///
/// # Errors
///
/// Always returns [`Unsupported`](io::ErrorKind::Unsupported).
pub fn send_progress(_socket: BorrowedFd<'_>) -> io::Result<SendProgress> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A ring that cannot be created. The enum has no variants, so its methods cannot be called.
#[cfg(feature = "ring")]
#[derive(Debug)]
pub(crate) enum Ring {}

#[cfg(feature = "ring")]
impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn is_working(&self) -> bool {
        match *self {}
    }

    pub(crate) fn send<'a>(&mut self, _sends: impl IntoIterator<Item = SendOp<'a>>) -> &[i32] {
        match *self {}
    }

    pub(crate) fn recv<'a>(&mut self, _receives: impl IntoIterator<Item = RecvOp<'a>>) -> &[i32] {
        match *self {}
    }
}
