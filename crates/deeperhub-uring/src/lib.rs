//! Batched sends and reads over many sockets with one system call each, behind a safe interface.
//! Also reads a connection's send progress from the kernel ([`send_progress`]).
//!
//! A server that sends to a thousand clients makes a thousand system calls. For small messages, their
//! entry and exit cost about as much as the kernel's own work. [`Batcher`] submits up to [`MAX_BATCH`]
//! operations at once through `io_uring` and waits until all are done. No operation waits for a socket
//! (`MSG_DONTWAIT`): one that is not ready returns [`WouldBlock`](std::io::ErrorKind::WouldBlock), like
//! a non-blocking `send` or `recv`. Readiness still comes from a reactor: this replaces the calls after
//! `epoll`, not `epoll`.
//!
//! The kernel borrows nothing once a call has returned. Buffers and descriptors are plain references,
//! and there are no futures, registrations or internal buffers.
//!
//! ```
//! # #[cfg(feature = "ring")]
//! # mod example {
//! use std::io::Read;
//! use std::net::{TcpListener, TcpStream};
//! use std::os::fd::AsFd;
//! use deeperhub_uring::{Batcher, SendOp};
//!
//! # pub fn main() -> std::io::Result<()> {
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
//! # }
//! # fn main() -> std::io::Result<()> {
//! #     #[cfg(feature = "ring")]
//! #     example::main()?;
//! #     Ok(())
//! # }
//! ```

#[cfg(feature = "ring")]
mod batcher;
#[cfg(target_os = "linux")]
mod progress;
#[cfg(all(feature = "ring", target_os = "linux"))]
mod ring;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(feature = "ring")]
pub use batcher::{Batcher, MAX_BATCH, Outcomes, RecvOp, SendOp};
#[cfg(target_os = "linux")]
pub use progress::{SendProgress, send_progress};
#[cfg(not(target_os = "linux"))]
pub use unsupported::{SendProgress, send_progress};

/// The README's example runs with the doc tests.
#[cfg(all(doctest, feature = "ring"))]
#[doc = include_str!("../README.md")]
struct Readme;
