//! Errors of a store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder that cannot be opened as a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder cannot be created, or nothing can be written there.
    #[error(
        "cannot write to the history folder {path}: {source}; choose a folder that this user may write to"
    )]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process has the folder open.
    #[error("the history folder {path} is in use by another process; stop it, or choose another folder")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Another version of this crate has written the folder.
    #[error(
        "the history folder {path} has format {found:?}, this program reads {supported:?}; \
         use the program that wrote it, or another folder"
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// The version of the folder.
        found: String,
        /// The version that this crate reads.
        supported: &'static str,
    },
    /// A file is not what the store has written.
    #[error("the history file {path} is damaged: {reason}; move it away to start without its messages")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot use the history file {path}: {source}; check the disk, or choose another folder")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The system has no thread for the store.
    #[error("cannot start the thread of the history store: {0}; raise the limit of threads")]
    Thread(io::Error),
}

impl OpenError {
    /// Returns a function that adds a path to an I/O error.
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

/// A message, or a change of a stream, that the store does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The disk is too slow: too many bytes wait for it.
    #[error("the queue of the history store is full; try again later")]
    QueueFull,
    /// The disk does not take what is written. The store retries by itself.
    #[error("the history store is unavailable: {0}; try again later")]
    Unavailable(Arc<str>),
    /// The store is closed.
    #[error("the history store is closed")]
    Closed,
    /// The message alone is larger than the queue.
    #[error("a message of {bytes} bytes is larger than the queue of the history store")]
    TooLarge {
        /// Bytes of the message.
        bytes: usize,
    },
}

/// An append of which is not known whether it is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The disk does not take what is written. The append may still get there later.
    #[error("the history store is unavailable: {0}; the append may still succeed")]
    Unavailable(Arc<str>),
    /// The append is not on the disk within the time.
    #[error("the append is not on the disk in time; it may still succeed")]
    Timeout,
    /// The store was closed before.
    #[error("the history store was closed before the append was on the disk")]
    Closed,
}

/// Messages that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read the history file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A message has changed on the disk.
    #[error("the history file {path} is damaged at byte {position}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Position of the message in the file.
        position: u64,
    },
    /// The disk does not take what is written, so the newest messages cannot be read either.
    #[error("the history store is unavailable: {0}; try again later")]
    Unavailable(Arc<str>),
}

/// A store that did not stop cleanly. At the next start, its streams get new epochs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history store could not be closed cleanly: {0}; its streams get new epochs at the next start")]
pub struct CloseError(pub(crate) Arc<str>);
