//! A plain TCP connection.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::task::{Context, Poll};

use deeperhub_uring::SendProgress;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A TCP connection, registered with the reactor of its worker's thread.
#[derive(Debug)]
pub(crate) struct Tcp {
    stream: TcpStream,
    /// `true` if writes try the socket even if the reactor has not reported it writable yet.
    bypasses_readiness: bool,
}

impl Tcp {
    /// Registers a non-blocking socket with the reactor of the current thread.
    pub(crate) fn new(socket: std::net::TcpStream) -> io::Result<Self> {
        Ok(Self { stream: TcpStream::from_std(socket)?, bypasses_readiness: false })
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.try_read(buffer)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.try_write(bytes) {
            Err(error) if self.bypasses_readiness && error.kind() == io::ErrorKind::WouldBlock => {
                SockRef::from(&self.stream).send(bytes)
            }
            result => result,
        }
    }

    pub(super) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.stream.try_write_vectored(slices) {
            Err(error) if self.bypasses_readiness && error.kind() == io::ErrorKind::WouldBlock => {
                SockRef::from(&self.stream).send_vectored(slices)
            }
            result => result,
        }
    }

    pub(super) fn set_bypass_readiness(&mut self, bypasses: bool) {
        self.bypasses_readiness = bypasses;
    }

    pub(super) fn progress(&self) -> io::Result<SendProgress> {
        deeperhub_uring::send_progress(std::os::fd::AsFd::as_fd(&self.stream))
    }

    pub(super) fn clear_readiness(&mut self) -> bool {
        // Clearing loses no event, because the reactor runs on this thread: it cannot report one
        // between the short read and the clearing. An operation that returns `WouldBlock` clears
        // the readiness.
        let result: io::Result<()> =
            self.stream.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
        debug_assert!(result.is_err());
        true
    }

    pub(super) fn arm_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx)
    }

    pub(super) fn arm_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    #[cfg(feature = "io-uring")]
    pub(super) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.stream)
    }

    pub(super) fn shutdown_write(&mut self) -> io::Result<()> {
        // `SockRef` only borrows the descriptor: the socket stays registered and readable.
        SockRef::from(&self.stream).shutdown(Shutdown::Write)
    }
}
