//! Batches of sends or reads: one system call for many sockets, behind a safe interface. The crate
//! also reads a connection's send progress from the kernel ([`send_progress`]).
//!
//! A server that sends to a thousand clients makes a thousand system calls. For small messages,
//! entering and leaving the kernel costs about as much as the send itself. [`Batcher`] submits up
//! to [`MAX_BATCH`] operations at once through `io_uring` and waits until all are done.
//!
//! No operation waits for its socket (`MSG_DONTWAIT`). If a socket is not ready, its operation
//! returns [`WouldBlock`](std::io::ErrorKind::WouldBlock), like a non-blocking `send` or `recv`.
//! The crate replaces the calls of `send` and `recv`, not the reactor: the caller still learns from
//! `epoll` which sockets are ready.
//!
//! When a call returns, the kernel no longer uses the buffers and descriptors of the call. They are
//! therefore plain references. There are no futures, registrations or internal buffers.
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
//!     return Ok(()); // `io_uring` is not available: use plain `send`
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

/// Runs the README's example as a doc test.
#[cfg(all(doctest, feature = "ring"))]
#[doc = include_str!("../README.md")]
struct Readme;
