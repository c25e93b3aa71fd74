//! Reading files with keys and certificates, and detecting their changes.

use crate::Secret;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use zeroize::Zeroizing;

/// Maximum size of a file in bytes: 1 MiB.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Reads a file that may contain a secret.
///
/// # Errors
///
/// [`FileError`] if the file cannot be read or is larger than [`MAX_BYTES`].
pub fn read(path: &Path) -> Result<Secret, FileError> {
    let failed = |error| FileError { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    // The full capacity, so that a growing buffer leaves no copy of the secret behind.
    let length = file.metadata().map_err(failed)?.len();
    let room = usize::try_from(length).unwrap_or(MAX_BYTES).min(MAX_BYTES) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    let limit = MAX_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    Ok(Secret::from_zeroizing(bytes))
}

/// Error for a file that cannot be read. The operator must fix it.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be read", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Error of the operating system.
    #[source]
    pub error: io::Error,
}

/// Metadata of some files at one time. Two stamps of the same paths are equal until a file changes.
///
/// A stamp taken before the files are read, and compared every few seconds, detects files that were
/// rewritten, replaced, removed or created. It also detects directories swapped by a symbolic link,
/// as Kubernetes does for secrets. It compares modification times, length and identity, not contents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileStamp(Vec<Option<Seen>>);

impl FileStamp {
    /// Returns the stamp of the files as they are now. A file that cannot be accessed counts as absent.
    #[must_use]
    pub fn of<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Self {
        let seen = |path: P| std::fs::metadata(path).ok().map(|metadata| Seen::of(&metadata));
        Self(paths.into_iter().map(seen).collect())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    length: u64,
    modified: Option<SystemTime>,
    /// Device, inode and status change time. Programs cannot set the latter, so it reveals a copy
    /// that keeps the old modification time.
    #[cfg(unix)]
    identity: (u64, u64, i64, i64),
}

impl Seen {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            length: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            identity: (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}
