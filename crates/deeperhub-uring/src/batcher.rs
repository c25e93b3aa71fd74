//! Batches of sends and reads over `io_uring`.

use std::io;
use std::os::fd::BorrowedFd;

#[cfg(target_os = "linux")]
use crate::ring;
#[cfg(not(target_os = "linux"))]
use crate::unsupported as ring;

/// Maximum operations in one call.
pub const MAX_BATCH: usize = 256;

/// Bytes to send to a socket.
#[derive(Debug, Clone, Copy)]
pub struct SendOp<'a> {
    /// A connected socket.
    pub to: BorrowedFd<'a>,
    /// Bytes to send; the socket may take only a prefix.
    pub bytes: &'a [u8],
}

/// Buffer for a read from a socket.
#[derive(Debug)]
pub struct RecvOp<'a> {
    /// A connected socket.
    pub from: BorrowedFd<'a>,
    /// Buffer that the bytes are written to, from its start.
    pub buffer: &'a mut [u8],
}

/// Ring that carries out batches. It belongs to one thread at a time.
///
/// If the kernel stops serving it (no memory is left, or a system call filter was installed
/// meanwhile), the remaining operations return `WouldBlock`. From then on,
/// [`is_working`](Self::is_working) returns `false`.
#[derive(Debug)]
pub struct Batcher {
    pub(crate) ring: ring::Ring,
}

impl Batcher {
    /// Creates a ring and tries it. Costs a file descriptor and about 25 KiB of kernel memory.
    ///
    /// # Errors
    ///
    /// `ENOSYS`, `EINVAL`: the kernel is older than Linux 5.18, or the system is not Linux
    /// ([`Unsupported`](io::ErrorKind::Unsupported)). `EPERM`, `EACCES`: `kernel.io_uring_disabled`
    /// is set, or a system call filter (as in most container engines) forbids it. `EMFILE`,
    /// `ENOMEM`: no descriptor or memory is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { ring: ring::Ring::new()? })
    }

    /// Returns `true` if calls are still carried out.
    pub fn is_working(&self) -> bool {
        self.ring.is_working()
    }

    /// Sends to each socket. Returns, in the same order, how many bytes each of them took.
    ///
    /// The operations run in no particular order, so no socket should be listed twice.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_BATCH`].
    pub fn send<'a>(&mut self, sends: impl IntoIterator<Item = SendOp<'a>>) -> Outcomes<'_> {
        Outcomes { results: self.ring.send(sends).iter() }
    }

    /// Reads from each socket. Returns, in the same order, how many bytes came: 0 if the peer has
    /// ended its side, or for an empty buffer.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_BATCH`].
    pub fn recv<'a>(&mut self, recvs: impl IntoIterator<Item = RecvOp<'a>>) -> Outcomes<'_> {
        Outcomes { results: self.ring.recv(recvs).iter() }
    }
}

/// Results of a batch's operations, in their order.
#[derive(Debug)]
pub struct Outcomes<'a> {
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
