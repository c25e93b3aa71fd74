//! A file of the log.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::record::{self, HEAD, Head, Kind, u32_at};
use crate::{Record, folder};

const MAGIC: &[u8; 8] = b"dhstore\n";

/// Length of a segment's header: the magic, the number (4 bytes) and a checksum of both (4).
pub(crate) const HEADER: u32 = 16;

/// Bytes of a record that are read at once. Longer records take a second read.
const FIRST_READ: usize = 1024;

/// A file of the log. It is only open while it is read: there may be more segments than a process
/// may have open files.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) path: PathBuf,
    bytes: AtomicU64,
    newest_ms: AtomicU64,
}

/// A message as it was found in a segment.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) record: Record,
    /// Location of the stream's message before it.
    pub(crate) previous: u64,
}

fn header(id: u32) -> [u8; HEADER as usize] {
    let mut header = [0; HEADER as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&id.to_le_bytes());
    let checksum = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&checksum.to_le_bytes());
    header
}

impl Segment {
    /// Creates a segment and returns it with the file to append to. A crash afterwards leaves an
    /// empty segment.
    pub(crate) fn create(folder: &Path, id: u32) -> io::Result<(Self, File)> {
        let path = folder::segment_path(folder, id);
        let mut writer = File::create_new(&path)?;
        let created = writer
            .write_all(&header(id))
            .and_then(|()| writer.sync_all())
            .and_then(|()| folder::sync_folder(folder));
        if let Err(error) = created {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        let (bytes, newest_ms) = (AtomicU64::new(HEADER.into()), AtomicU64::new(0));
        Ok((Self { id, path, bytes, newest_ms }, writer))
    }

    /// Looks at a segment of an earlier process. Returns `None` if its header is not valid.
    pub(crate) fn find(path: &Path, id: u32) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let bytes = AtomicU64::new(file.metadata()?.len());
        let mut start = Vec::new();
        file.take(HEADER.into()).read_to_end(&mut start)?;
        let valid = start == header(id);
        Ok(valid.then(|| Self { id, path: path.to_owned(), bytes, newest_ms: AtomicU64::new(0) }))
    }

    /// Opens the file. Returns `None` if the segment was dropped.
    pub(crate) fn open(&self) -> io::Result<Option<File>> {
        match File::open(&self.path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the length of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the time of the newest message, or 0 if there is none.
    pub(crate) fn newest_ms(&self) -> u64 {
        self.newest_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn note_time(&self, time_ms: u64) {
        self.newest_ms.fetch_max(time_ms, Ordering::Relaxed);
    }

    /// Cuts the file to a length. Data after it was never promised to anybody.
    pub(crate) fn truncate(&self, bytes: u64) -> io::Result<()> {
        let file = File::options().write(true).open(&self.path)?;
        file.set_len(bytes)?;
        file.sync_all()?;
        self.set_bytes(bytes);
        Ok(())
    }

    /// Reads the records from the first one on. A dropped segment has none.
    pub(crate) fn scan(&self) -> io::Result<Scanner> {
        let file = match self.open()? {
            Some(mut file) => {
                file.seek(SeekFrom::Start(HEADER.into()))?;
                Some(BufReader::with_capacity(256 << 10, file))
            }
            None => None,
        };
        let end = file.as_ref().map_or(Ok(0), |file| file.get_ref().metadata().map(|data| data.len()))?;
        Ok(Scanner { file, position: HEADER.into(), end, record: Vec::new(), is_torn: false })
    }

    /// Reads the message at a position of the opened file. Returns `None` if there is none, or a
    /// damaged one.
    pub(crate) fn message(&self, file: &File, position: u32) -> io::Result<Option<Found>> {
        let mut bytes = vec![0; FIRST_READ];
        let read = read_at(file, &mut bytes, position.into())?;
        bytes.truncate(read);
        let Some(head) = Head::parse(&bytes) else { return Ok(None) };
        let (length, rest) = (head.record_length(), position as u64 + read as u64);
        if length > read {
            // A damaged length must not cause a large allocation.
            if position as u64 + length as u64 > self.bytes() {
                return Ok(None);
            }
            bytes.resize(length, 0);
            let more = read_at(file, &mut bytes[read..], rest)?;
            bytes.truncate(read + more);
        }
        bytes.truncate(length);
        if head.kind != Kind::Message || bytes.len() < length || !record::is_intact(&bytes) {
            return Ok(None);
        }
        bytes.drain(..HEAD);
        let record = Record { offset: head.offset, time_ms: head.time_ms, bytes };
        Ok(Some(Found { record, previous: head.previous }))
    }
}

/// Reads the records of a segment in order.
#[derive(Debug)]
pub(crate) struct Scanner {
    file: Option<BufReader<File>>,
    position: u64,
    end: u64,
    record: Vec<u8>,
    is_torn: bool,
}

impl Scanner {
    /// Returns the position, the head and the body of the next record. Returns `None` at the end,
    /// and at a record that is not whole.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u32, Head, &[u8])>> {
        let position = self.position;
        let left = self.end.saturating_sub(position);
        if left == 0 || self.is_torn {
            return Ok(None);
        }
        let Some(file) = &mut self.file else { return Ok(None) };
        self.is_torn = true;
        if left < HEAD as u64 {
            return Ok(None);
        }
        self.record.resize(HEAD, 0);
        file.read_exact(&mut self.record)?;
        let length = HEAD as u64 + u64::from(u32_at(&self.record, 0));
        let Some(head) = Head::parse(&self.record).filter(|_| length <= left) else { return Ok(None) };
        self.record.resize(head.record_length(), 0);
        file.read_exact(&mut self.record[HEAD..])?;
        if !record::is_intact(&self.record) {
            return Ok(None);
        }
        let Ok(start) = u32::try_from(position) else { return Ok(None) };
        (self.is_torn, self.position) = (false, position + length);
        Ok(Some((start, head, &self.record[HEAD..])))
    }

    /// Returns the position after the last whole record.
    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// Returns `true` if the scan ended at a record that is not whole.
    pub(crate) const fn is_torn(&self) -> bool {
        self.is_torn
    }
}

/// Reads until the buffer is full or the file ends. Does not move the file's cursor on Unix.
fn read_at(file: &File, mut buffer: &mut [u8], mut position: u64) -> io::Result<usize> {
    let mut read = 0;
    while !buffer.is_empty() {
        #[cfg(unix)]
        let result = std::os::unix::fs::FileExt::read_at(file, buffer, position);
        #[cfg(windows)]
        let result = std::os::windows::fs::FileExt::seek_read(file, buffer, position);
        match result {
            Ok(0) => break,
            Ok(count) => {
                read += count;
                position += count as u64;
                buffer = &mut buffer[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
