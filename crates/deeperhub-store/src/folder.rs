//! The folder of a store: its version, its lock, its files.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::OpenError;
use crate::segment::Segment;

/// First line of the file `VERSION`.
pub(crate) const VERSION: &str = "deeperhub-store 1";

const VERSION_FILE: &str = "VERSION";
const LOCK_FILE: &str = "lock";
const CLEAN_FILE: &str = "clean";

pub(crate) fn segment_path(folder: &Path, id: u32) -> PathBuf {
    folder.join(format!("{id:010}.log"))
}

/// Returns the path of the summary of a segment.
pub(crate) fn summary_path(folder: &Path, id: u32) -> PathBuf {
    folder.join(format!("{id:010}.idx"))
}

/// Makes new names and removed names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere a folder cannot be opened as a file, and names are durable with the file.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Writes a file that either has all of its bytes after a crash or does not exist under its name.
pub(crate) fn write_whole(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(folder));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Creates a folder, and those above it, if they do not exist. Only the user of this process can
/// read it, since messages may be private.
fn create(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Creates a folder if it does not exist, locks it and checks its version. The lock lasts as long
/// as the file that is returned.
pub(crate) fn prepare(folder: &Path) -> Result<File, OpenError> {
    let not_writable = |source| OpenError::NotWritable { path: folder.to_owned(), source };
    create(folder).map_err(not_writable)?;
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK_FILE));
    let lock = lock.map_err(not_writable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(OpenError::at(&folder.join(LOCK_FILE))(error)),
    }
    let path = folder.join(VERSION_FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let found = text.lines().next().unwrap_or_default();
            if found != VERSION {
                // The text comes from a file that may be anything.
                let found = found.chars().take(40).collect();
                let path = folder.to_owned();
                return Err(OpenError::Version { path, found, supported: VERSION });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !segment_ids(folder)?.is_empty() {
                let reason = "it is missing beside files of messages";
                return Err(OpenError::Damaged { path, reason });
            }
            write_whole(folder, &path, format!("{VERSION}\n").as_bytes()).map_err(not_writable)?;
        }
        Err(error) => return Err(OpenError::at(&path)(error)),
    }
    Ok(lock)
}

/// Returns the numbers of the segments, in order.
pub(crate) fn segment_ids(folder: &Path) -> Result<Vec<u32>, OpenError> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(folder).map_err(OpenError::at(folder))? {
        let name = entry.map_err(OpenError::at(folder))?.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(".log")).map(str::parse::<u32>);
        // Other files may be anything.
        let is_ours = |id: &u32| *id > 0 && segment_path(folder, *id).file_name() == Some(&name);
        ids.extend(id.and_then(Result::ok).filter(is_ours));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Returns a text that identifies a set of segments.
fn clean_text<'a>(segments: impl IntoIterator<Item = &'a Segment>) -> String {
    let mut hasher = crc32fast::Hasher::new();
    for segment in segments {
        hasher.update(&segment.id.to_le_bytes());
        hasher.update(&segment.bytes().to_le_bytes());
    }
    format!("{:08x}\n", hasher.finalize())
}

/// Records that the store has stopped cleanly with these segments.
pub(crate) fn mark_clean<'a>(
    folder: &Path,
    segments: impl IntoIterator<Item = &'a Segment>,
) -> io::Result<()> {
    write_whole(folder, &folder.join(CLEAN_FILE), clean_text(segments).as_bytes())
}

/// Returns `true` if the store has stopped cleanly with just these segments.
pub(crate) fn is_clean<'a>(folder: &Path, segments: impl IntoIterator<Item = &'a Segment>) -> bool {
    fs::read(folder.join(CLEAN_FILE)).is_ok_and(|text| text == clean_text(segments).as_bytes())
}

/// Removes the record of a clean stop, for good.
pub(crate) fn unmark_clean(folder: &Path) -> Result<(), OpenError> {
    let path = folder.join(CLEAN_FILE);
    match fs::remove_file(&path) {
        Ok(()) => sync_folder(folder).map_err(OpenError::at(folder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(OpenError::at(&path)(error)),
    }
}
