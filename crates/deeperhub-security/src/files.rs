//! Files with keys and certificates: reading them, and noticing that they changed.

use crate::Secret;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use zeroize::Zeroizing;

/// The largest file that is read: 1 MiB.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Reads a file that may hold a secret.
///
/// # Errors
///
/// [`FileError`] when it cannot be read or is larger than [`MAX_BYTES`].
pub fn read(path: &Path) -> Result<Secret, FileError> {
    let failed = |error| FileError { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    // Room for all of it, so that no copy is left behind by a buffer that had to grow.
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

/// A file cannot be read. The operator's to mend.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be read", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    #[source]
    pub error: io::Error,
}

/// What some files looked like at one time. Two stamps of the same paths are equal while the files stay as they are.
///
/// Taken before the files are read and compared every few seconds, it notices files that were rewritten, replaced,
/// removed or put there, and directories swapped by a symbolic link, as Kubernetes does with its secrets. It looks at
/// what the system keeps of a file (the times of its last changes, length, and which file it is), not into it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileStamp(Vec<Option<Seen>>);

impl FileStamp {
    /// What the files look like now. One that is not there, or may not be looked at, counts as absent.
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
    /// Device, inode, and the time of the last change of anything, which cannot be set: a copy that keeps the old
    /// time of modification is noticed by these.
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
