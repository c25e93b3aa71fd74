//! The socket of a connection, as the worker sees it.

mod tcp;

pub(crate) use tcp::Tcp;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

/// A non-blocking byte stream whose readiness comes through a waker.
///
/// Everything but `arm` is synchronous and answers `WouldBlock` when it cannot go on. A TLS stream is a second
/// implementation, another reactor would be a third.
pub(crate) trait Transport {
    /// Reads what is there. `Ok(0)`: the peer has ended its side.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Says that a read came back short, so the socket is empty: readiness is cleared without the system call that
    /// would find that out. False: a short read says nothing here.
    fn drained(&mut self) -> bool;

    /// Asks for a wake-up when the socket is readable. `Ready`: it is now.
    fn arm_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Asks for a wake-up when the socket is writable. `Ready`: it is now.
    fn arm_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the sending side, so that the peer reads the end after all that was written.
    fn shutdown_write(&mut self) -> io::Result<()>;
}
