//! Stand-ins for systems without `io_uring` and `TCP_INFO`.

use std::io;
use std::os::fd::BorrowedFd;

#[cfg(feature = "ring")]
use crate::{RecvOp, SendOp};

/// Send progress of a TCP socket, as its kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendProgress {
    /// Bytes that the peer's kernel has acknowledged.
    pub acknowledged: u64,
    /// Whether bytes wait in the kernel.
    pub is_outstanding: bool,
}

/// Returns [`Unsupported`](io::ErrorKind::Unsupported).
///
/// # Errors
///
/// Always.
pub fn send_progress(_socket: BorrowedFd<'_>) -> io::Result<SendProgress> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(feature = "ring")]
/// Ring that cannot be created.
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
