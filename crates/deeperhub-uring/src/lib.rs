//! Sends and reads of many sockets by one system call each, behind a safe interface.
//!
//! A server that has something for a thousand clients pays for a thousand system calls, and their entry and exit cost
//! about as much as the kernel's own work for small messages. [`Batcher`] hands the kernel up to [`MAX_BATCH`] of them at
//! once by `io_uring` and waits until all are done. None of them ever waits for a socket (`MSG_DONTWAIT`): one that is
//! not ready answers [`WouldBlock`](std::io::ErrorKind::WouldBlock), as a non-blocking socket does to `send` and `recv`.
//! Readiness is still to be learned from a reactor: this does not replace `epoll`, it replaces what comes after it.
//!
//! Nothing is borrowed by the kernel once a call has returned, so buffers and descriptors are plain references, and there
//! is no future, no registration and no buffer of its own.
//!
//! ```
//! use std::io::Read;
//! use std::net::{TcpListener, TcpStream};
//! use std::os::fd::AsFd;
//! use deeperhub_uring::{Batcher, SendOp};
//!
//! # fn main() -> std::io::Result<()> {
//! let Ok(mut batcher) = Batcher::new() else {
//!     return Ok(()); // an old kernel, or one that does not let this program: use plain `send`
//! };
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let mut clients = Vec::new();
//! let mut sockets = Vec::new();
//! for _ in 0..10 {
//!     clients.push(TcpStream::connect(listener.local_addr()?)?);
//!     sockets.push(listener.accept()?.0);
//! }
//! let sends = sockets.iter().map(|socket| SendOp { to: socket.as_fd(), bytes: b"all of you" });
//! for sent in batcher.send(sends) {
//!     assert_eq!(sent?, 10);
//! }
//! let mut read = [0; 10];
//! clients[7].read_exact(&mut read)?;
//! assert_eq!(&read, b"all of you");
//! # Ok(())
//! # }
//! ```

use std::io;
use std::os::fd::BorrowedFd;

#[cfg(target_os = "linux")]
mod ring;
#[cfg(not(target_os = "linux"))]
#[path = "unsupported.rs"]
mod ring;

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
    ring: ring::Ring,
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

/// The README's example runs with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
