//! Folders and stores of tests.

#![allow(dead_code, reason = "no test uses all of it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use deeperhub_store::{Options, Order, Read, Record, Recovered, RecoveredStream, Store, StreamId, Wanted};

/// Time that a test waits for the disk.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// All messages of a stream.
pub(crate) const ALL: Read =
    Read { from: 0, order: Order::Ascending, limit: usize::MAX, max_bytes: usize::MAX };

/// A folder that is removed on drop.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("deeperhub-store-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the files with an extension, in order.
    pub(crate) fn files(&self, extension: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.0).expect("the folder can be read");
        let paths = entries.map(|entry| entry.expect("the folder can be read").path());
        let mut files: Vec<_> =
            paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn open(folder: &Folder, options: &Options) -> (Store, Vec<RecoveredStream>) {
    let (store, recovered) = open_raw(folder, options);
    let streams = load(recovered, usize::MAX);
    (store, streams)
}

pub(crate) fn open_raw(folder: &Folder, options: &Options) -> (Store, Recovered) {
    Store::open(folder.path(), options, || fastrand::u64(..)).expect("the store opens")
}

/// Returns all streams that were recovered, within a budget of bytes.
pub(crate) fn load(recovered: Recovered, budget: usize) -> Vec<RecoveredStream> {
    let mut streams = Vec::new();
    let all = Wanted { messages: usize::MAX, bytes: usize::MAX, since_ms: 0, overhead: 0 };
    recovered.load(budget, |_topic| all, |stream| streams.push(stream)).expect("files can be read");
    streams
}

pub(crate) fn append(store: &Store, stream: StreamId, offset: u64, bytes: &[u8]) {
    let record = Record { offset, time_ms: offset, bytes };
    store.append(stream, record).expect("the store takes it");
}

/// Returns the offsets of records.
pub(crate) fn offsets(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.offset).collect()
}
