//! Reads files with keys and certificates, and detects changes of the files.

use crate::Secret;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use zeroize::Zeroizing;

/// Maximum size of a file in bytes: 1 MiB. Limits memory use if a path names the wrong file.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Reads a file that may contain a secret.
///
/// # Errors
///
/// [`FileError`] if the file cannot be read or is larger than [`MAX_BYTES`].
pub fn read(path: &Path) -> Result<Secret, FileError> {
    let failed = |error| FileError { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    // The buffer has its full capacity from the start. A growing one would leave copies of the
    // secret in freed memory.
    let length = file.metadata().map_err(failed)?.len();
    let capacity = usize::try_from(length).unwrap_or(MAX_BYTES).min(MAX_BYTES) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    let limit = MAX_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    Ok(Secret::from_zeroizing(bytes))
}

/// Error of reading a file. The operator must fix it.
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
/// Take a stamp before the files are read, and compare it with a new one every few seconds. The
/// stamps differ after a file was rewritten, replaced, removed or created. They also differ after a
/// symbolic link to the directory of a file was changed, as Kubernetes does for secrets. A stamp
/// contains times, lengths and identities of the files, not their contents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileStamp(Vec<Option<FileState>>);

impl FileStamp {
    /// Returns the current stamp of the files. A file that cannot be accessed counts as absent.
    #[must_use]
    pub fn of<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Self {
        let state = |path: P| std::fs::metadata(path).ok().map(|metadata| FileState::of(&metadata));
        Self(paths.into_iter().map(state).collect())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    length: u64,
    modified: Option<SystemTime>,
    /// Device, inode and status change time. Programs cannot set the status change time, so it
    /// reveals a copy that has the old modification time.
    #[cfg(unix)]
    identity: (u64, u64, i64, i64),
}

impl FileState {
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
