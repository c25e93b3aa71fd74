//! Reads from a disk that hangs or is slow.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use deeperhub_metrics::Cells;

use super::{Reader, TIME_LIMIT};
use crate::metrics::{ReadLabel, StoreMetrics};
use crate::streams::{ReadFailed, ReadPurpose, ReadResult};

/// Time within which a thread does what it is told.
const SOON: Duration = Duration::from_secs(60);

/// A disk that answers a read only when it is told to. It has no messages.
struct SlowDisk {
    reader: Reader,
    metrics: StoreMetrics,
    /// Numbers of the reads that have reached the disk.
    begun: Receiver<u64>,
    begin: Sender<u64>,
    answers: Sender<()>,
    may_answer: Arc<Mutex<Receiver<()>>>,
}

impl SlowDisk {
    fn new(time_limit: Duration) -> Self {
        let metrics = StoreMetrics::new(&Cells::new(1));
        let (begin, begun) = mpsc::channel();
        let (answers, may_answer) = mpsc::channel();
        let reader = Reader::start(time_limit, metrics.clone()).unwrap();
        Self { reader, metrics, begun, begin, answers, may_answer: Arc::new(Mutex::new(may_answer)) }
    }

    /// Starts a read. Returns the receiver of its result.
    fn read(&self, number: u64, purpose: ReadPurpose) -> Receiver<ReadResult> {
        let (sender, receiver) = mpsc::channel();
        let (begin, may_answer) = (self.begin.clone(), Arc::clone(&self.may_answer));
        let read = move || {
            begin.send(number).unwrap();
            may_answer.lock().unwrap().recv().map_or(Err(ReadFailed), |()| Ok(Vec::new()))
        };
        self.reader.read(Box::new(read), purpose, Box::new(move |result| drop(sender.send(result))));
        receiver
    }

    fn wait_for(&self, number: u64) {
        assert_eq!(self.begun.recv_timeout(SOON), Ok(number));
    }
}

fn result(receiver: &Receiver<ReadResult>) -> Option<bool> {
    receiver.try_recv().ok().map(|result| result.is_ok())
}

#[test]
fn reads_fail_while_the_disk_hangs_and_succeed_when_it_answers_again() {
    let disk = SlowDisk::new(TIME_LIMIT);
    let (hanging, waiting) = (disk.read(1, ReadPurpose::Replay), disk.read(2, ReadPurpose::Replay));
    disk.wait_for(1);
    disk.reader.expire(Instant::now());
    assert_eq!((result(&hanging), result(&waiting)), (None, None));
    disk.reader.expire(Instant::now() + TIME_LIMIT);
    assert_eq!((result(&hanging), result(&waiting)), (Some(false), Some(false)));
    for purpose in [ReadPurpose::Answer, ReadPurpose::Replay] {
        assert_eq!(result(&disk.read(3, purpose)), Some(false), "it fails at once");
    }
    assert_eq!(disk.metrics.reads.value(ReadLabel::Failed), 4);
    // The late result is nobody's.
    disk.answers.send(()).unwrap();
    let answered = (4..).find_map(|number| {
        std::thread::yield_now();
        let read = disk.read(number, ReadPurpose::Answer);
        (result(&read) != Some(false)).then_some((number, read))
    });
    let (number, read) = answered.unwrap();
    disk.wait_for(number);
    disk.answers.send(()).unwrap();
    assert!(read.recv_timeout(SOON).unwrap().is_ok());
    assert_eq!(disk.metrics.reads.value(ReadLabel::Ok), 1);
}

#[test]
fn answers_wait_for_a_limited_time_for_a_slow_disk_and_replays_do_not() {
    let disk = SlowDisk::new(TIME_LIMIT);
    let first = disk.read(1, ReadPurpose::Replay);
    let (answer, replay) = (disk.read(2, ReadPurpose::Answer), disk.read(3, ReadPurpose::Replay));
    disk.wait_for(1);
    disk.answers.send(()).unwrap();
    assert!(first.recv_timeout(SOON).unwrap().is_ok());
    disk.wait_for(2);
    let late = disk.read(4, ReadPurpose::Answer);
    // The read in progress began just now.
    let now = Instant::now();
    disk.answers.send(()).unwrap();
    assert!(answer.recv_timeout(SOON).unwrap().is_ok());
    disk.wait_for(3);
    disk.reader.expire(now + TIME_LIMIT);
    assert_eq!((result(&late), result(&replay)), (Some(false), None));
    disk.answers.send(()).unwrap();
    assert!(replay.recv_timeout(SOON).unwrap().is_ok());
}

#[test]
fn the_end_does_not_wait_for_a_disk_that_hangs() {
    let disk = SlowDisk::new(Duration::from_millis(1));
    let (hanging, waiting) = (disk.read(1, ReadPurpose::Replay), disk.read(2, ReadPurpose::Answer));
    disk.wait_for(1);
    let SlowDisk { reader, answers, .. } = disk;
    drop(reader);
    assert_eq!(result(&hanging), None);
    assert!(waiting.recv_timeout(SOON).is_err(), "it is dropped");
    // The thread ends when the disk answers.
    answers.send(()).unwrap();
    assert!(hanging.recv_timeout(SOON).is_ok_and(|result| result.is_ok()));
}
