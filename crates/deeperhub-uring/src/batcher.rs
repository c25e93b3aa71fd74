//! The batches.

use std::io;
use std::os::fd::BorrowedFd;

#[cfg(target_os = "linux")]
use crate::ring;
#[cfg(not(target_os = "linux"))]
use crate::unsupported as ring;

/// What one call carries out at most.
pub const MAX_BATCH: usize = 256;

/// Bytes for a socket.
#[derive(Debug, Clone, Copy)]
pub struct SendOp<'a> {
    /// A connected socket.
    pub to: BorrowedFd<'a>,
    /// What it should send; it may take only the first of them.
    pub bytes: &'a [u8],
}

/// Room for what a socket has received.
#[derive(Debug)]
pub struct RecvOp<'a> {
    /// A connected socket.
    pub from: BorrowedFd<'a>,
    /// Where its bytes go, from the start.
    pub buffer: &'a mut [u8],
}

/// Carries out batches. It belongs to one thread at a time.
///
/// When the kernel stops serving it (it has no memory, or a filter of system calls was put in place meanwhile), what was
/// not carried out answers `WouldBlock`, and [`is_working`](Self::is_working) is false from then on.
#[derive(Debug)]
pub struct Batcher {
    pub(crate) ring: ring::Ring,
}

impl Batcher {
    /// Asks the kernel for a ring, and tries it. Costs a file descriptor and about 25 KiB of the kernel's memory.
    ///
    /// # Errors
    ///
    /// `ENOSYS`, `EINVAL`: the kernel is older than Linux 5.18, or no Linux ([`Unsupported`](io::ErrorKind::Unsupported)).
    /// `EPERM`, `EACCES`: `kernel.io_uring_disabled` is set, or a filter of system calls (as those of most container
    /// engines) does not let it. `EMFILE`, `ENOMEM`: no descriptor or memory is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { ring: ring::Ring::new()? })
    }

    /// Whether calls are still carried out.
    pub fn is_working(&self) -> bool {
        self.ring.is_working()
    }

    /// Sends to each of the sockets, and answers for each, in the same order, how many of the bytes it took.
    ///
    /// They are in no order with each other: no socket should be there twice.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_BATCH`].
    pub fn send<'a>(&mut self, sends: impl IntoIterator<Item = SendOp<'a>>) -> Outcomes<'_> {
        Outcomes { results: self.ring.send(sends).iter() }
    }

    /// Reads from each of the sockets, and answers for each, in the same order, how many bytes came; 0 for one whose peer
    /// has ended its side (and for an empty buffer).
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_BATCH`].
    pub fn recv<'a>(&mut self, recvs: impl IntoIterator<Item = RecvOp<'a>>) -> Outcomes<'_> {
        Outcomes { results: self.ring.recv(recvs).iter() }
    }
}

/// How the parts of a batch ended, in their order.
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
