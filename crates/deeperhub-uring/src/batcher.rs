//! Batches of sends and reads over `io_uring`.

use std::io;
use std::os::fd::BorrowedFd;

#[cfg(target_os = "linux")]
use crate::ring;
#[cfg(not(target_os = "linux"))]
use crate::unsupported as ring;

/// Maximum number of operations in one call.
pub const MAX_BATCH: usize = 256;

/// Bytes to send to a socket.
#[derive(Debug, Clone, Copy)]
pub struct SendOp<'a> {
    /// A connected socket.
    pub to: BorrowedFd<'a>,
    /// Bytes to send. The socket can accept only a prefix of them.
    pub bytes: &'a [u8],
}

/// A read from a socket.
#[derive(Debug)]
pub struct RecvOp<'a> {
    /// A connected socket.
    pub from: BorrowedFd<'a>,
    /// Buffer for the received bytes. They are written to its start.
    pub buffer: &'a mut [u8],
}

/// An `io_uring` that executes batches: lists of sends, or lists of reads.
///
/// The kernel can stop serving the ring, for example if memory runs out or if a system call filter
/// is installed later. Operations that the kernel did not execute then return `WouldBlock`, and
/// [`is_working`](Self::is_working) returns `false` from then on.
#[derive(Debug)]
pub struct Batcher {
    pub(crate) ring: ring::Ring,
}

impl Batcher {
    /// Creates a ring and executes a test operation on it. The ring needs a file descriptor and
    /// about 25 KiB of kernel memory.
    ///
    /// # Errors
    ///
    /// - `ENOSYS`, `EINVAL`: the kernel is older than Linux 5.18.
    /// - [`Unsupported`](io::ErrorKind::Unsupported): the system is not Linux, or the test
    ///   operation failed.
    /// - `EPERM`, `EACCES`: `kernel.io_uring_disabled` is set, or a system call filter forbids
    ///   `io_uring`, as in most container engines.
    /// - `EMFILE`, `ENOMEM`: the process has no free file descriptor, or the kernel has no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self { ring: ring::Ring::new()? })
    }

    /// Returns `true` if the kernel still serves the ring.
    pub fn is_working(&self) -> bool {
        self.ring.is_working()
    }

    /// Sends to each socket. Returns the number of bytes that each socket accepted, in the order of
    /// `sends`.
    ///
    /// The kernel can execute the operations in any order, so each socket should be listed only
    /// once.
    ///
    /// # Panics
    ///
    /// Panics if `sends` has more than [`MAX_BATCH`] items.
    pub fn send<'a>(&mut self, sends: impl IntoIterator<Item = SendOp<'a>>) -> Outcomes<'_> {
        Outcomes { results: self.ring.send(sends).iter() }
    }

    /// Reads from each socket. Returns the number of received bytes, in the order of `recvs`. The
    /// number is 0 if the peer has closed its side or if the buffer is empty.
    ///
    /// # Panics
    ///
    /// Panics if `recvs` has more than [`MAX_BATCH`] items.
    pub fn recv<'a>(&mut self, recvs: impl IntoIterator<Item = RecvOp<'a>>) -> Outcomes<'_> {
        Outcomes { results: self.ring.recv(recvs).iter() }
    }
}

/// The results of a batch's operations, in the order of the operations.
#[derive(Debug)]
pub struct Outcomes<'a> {
    /// For each operation, its number of bytes, or a negative error number.
    results: std::slice::Iter<'a, i32>,
}

impl Iterator for Outcomes<'_> {
    type Item = io::Result<usize>;

    #[inline]
    fn next(&mut self) -> Option<io::Result<usize>> {
        let result = *self.results.next()?;
        Some(usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg())))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.results.size_hint()
    }
}

impl ExactSizeIterator for Outcomes<'_> {}
