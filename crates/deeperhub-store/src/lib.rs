//! Message history of topics on disk: an append-only log in time buckets, with its own thread.
//!
//! - A [`Store`] takes [`Record`]s of streams, and never waits for the disk. Its thread writes and
//!   syncs them together ([`SyncPolicy`]).
//! - A [`Ticket`] says when an append is on the disk for good ([`Store::wait`],
//!   [`Options::on_progress`]).
//! - [`Store::read`] returns messages that are no longer in memory.
//! - [`Recovered`] gives back all streams when a store is opened.
//! - Old messages are dropped in whole files ([`Store::drop_expired`],
//!   [`Options::max_disk_bytes`]).
//!
//! The store knows no messages, only bytes. Random numbers and times are arguments.
//!
//! # Files
//!
//! A folder has segments (`0000000001.log` and so on), which are only ever appended to. Each record
//! has a checksum and the place of its stream's previous message. A complete segment has a summary
//! (`.idx`), so that a start reads only the messages that are wanted. Declarations of streams in
//! a segment that is dropped are written again before.
//!
//! # Memory
//!
//! The queue is bounded by [`Options::queue_bytes`]. A stream takes about 200 bytes and its topic,
//! and 16 bytes more for each 64 messages on the disk. While a segment is dropped, declarations of
//! its streams take memory.

mod error;
mod folder;
mod location;
mod log;
mod older;
mod options;
mod queue;
mod read;
mod record;
mod recovered;
mod segment;
mod store;
mod summary;
mod table;
mod values;
mod writer;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use deeperhub_types::Epoch;
pub use error::{AppendError, CloseError, OpenError, ReadError, WaitError};
pub use older::OlderPart;
pub use options::{Options, ProgressFn, SyncPolicy};
pub use read::{Order, Read};
pub use recovered::{Recovered, RecoveredStream, Wanted};
pub use store::Store;
pub use values::{Availability, Predecessor, Progress, Record, StreamId, Ticket, Usage};

/// Locks a mutex. A thread that panicked left its value as consistent as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
