//! Random orders of operations, compared with a list of all messages.

mod common;

use std::collections::BTreeMap;
use std::fs::OpenOptions;

use common::{ALL, Folder, TIMEOUT, load, open_raw};
use deeperhub_store::{
    Epoch, Options, Order, Predecessor, Read, Record, RecoveredStream, Store, StreamId, SyncPolicy,
};
use proptest::prelude::*;

const TOPICS: [&str; 4] = ["chat.tea", "chat.milk", "news", "user.7"];

#[derive(Debug, Clone)]
enum Operation {
    /// Messages of a topic: their number, the length of each, and the time between them.
    Append {
        topic: usize,
        count: u64,
        length: usize,
        pause_ms: u64,
    },
    Clear {
        topic: usize,
    },
    Remove {
        topic: usize,
    },
    Skip {
        topic: usize,
        offsets: u64,
    },
    Expire {
        ttl_ms: u64,
    },
    Read {
        topic: usize,
        from: u64,
        limit: usize,
        max_bytes: usize,
    },
    /// Ends the store, cleanly or not, and opens it again with a budget for the messages.
    Reopen {
        clean: bool,
        budget: usize,
    },
    /// Ends the store and cuts bytes off its newest segment, as a crash of the machine may do.
    Crash {
        bytes: u64,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let topic = 0..TOPICS.len();
    prop_oneof![
        12 => (topic.clone(), 1..90_u64, 0..60_usize, 0..30_u64).prop_map(
            |(topic, count, length, pause_ms)| Operation::Append { topic, count, length, pause_ms }
        ),
        1 => (topic.clone(), 1..3_u64, 30_000..80_000_usize, 0..900_u64).prop_map(
            |(topic, count, length, pause_ms)| Operation::Append { topic, count, length, pause_ms }
        ),
        1 => topic.clone().prop_map(|topic| Operation::Clear { topic }),
        1 => topic.clone().prop_map(|topic| Operation::Remove { topic }),
        1 => (topic.clone(), 1..100_u64).prop_map(|(topic, offsets)| Operation::Skip { topic, offsets }),
        2 => (0..4000_u64).prop_map(|ttl_ms| Operation::Expire { ttl_ms }),
        6 => (topic, 0..600_u64, 0..200_usize, 0..5000_usize).prop_map(
            |(topic, from, limit, max_bytes)| Operation::Read { topic, from, limit, max_bytes }
        ),
        2 => (any::<bool>(), prop_oneof![Just(usize::MAX), 0..20_000_usize])
            .prop_map(|(clean, budget)| Operation::Reopen { clean, budget }),
        1 => (1..3000_u64).prop_map(|bytes| Operation::Crash { bytes }),
    ]
}

/// A stream as it must be.
#[derive(Debug, Clone)]
struct ModelStream {
    id: StreamId,
    epoch: Epoch,
    predecessor: Option<Predecessor>,
    newest: u64,
    records: Vec<Record>,
}

struct Model {
    folder: Folder,
    options: Options,
    store: Option<Store>,
    streams: BTreeMap<&'static str, ModelStream>,
    /// Every message that was ever appended to a stream.
    appended: BTreeMap<StreamId, Vec<Record>>,
    now_ms: u64,
    /// Messages that are older may be gone.
    kept_since_ms: u64,
    random: u64,
}

impl Model {
    fn new() -> Self {
        let folder = Folder::new("model");
        let mut options = Options::default();
        // Small segments; a sync only when the store is closed, or for its queue.
        options.bucket = std::time::Duration::from_secs(1);
        options.segment_bytes = 64 << 10;
        options.sync = SyncPolicy::Interval(std::time::Duration::from_secs(3600));
        let (store, _) = open_raw(&folder, &options);
        let (streams, appended) = (BTreeMap::new(), BTreeMap::new());
        Self {
            folder,
            options,
            store: Some(store),
            streams,
            appended,
            now_ms: 1_000_000,
            kept_since_ms: 0,
            random: 0,
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    fn epoch(&mut self) -> Epoch {
        self.random += 1;
        Epoch::from_bits(self.random)
    }

    fn stream(&mut self, topic: usize) -> &mut ModelStream {
        let topic = TOPICS[topic];
        if !self.streams.contains_key(topic) {
            let epoch = self.epoch();
            let id = self.store().create_stream(topic, epoch).expect("the store takes it");
            let stream = ModelStream { id, epoch, predecessor: None, newest: 0, records: Vec::new() };
            self.streams.insert(topic, stream);
        }
        self.streams.get_mut(topic).expect("it is there")
    }

    fn carry_out(&mut self, operation: &Operation) -> Result<(), TestCaseError> {
        match *operation {
            Operation::Append { topic, count, length, pause_ms } => {
                for number in 0..count {
                    self.now_ms += pause_ms;
                    let time_ms = self.now_ms;
                    let stream = self.stream(topic);
                    stream.newest += 1;
                    let (id, offset) = (stream.id, stream.newest);
                    let bytes = vec![number as u8; length];
                    stream.records.push(Record { offset, time_ms, bytes: bytes.clone() });
                    let appended = self.appended.entry(id).or_default();
                    appended.push(Record { offset, time_ms, bytes: bytes.clone() });
                    let record = Record { offset, time_ms, bytes: &bytes[..] };
                    self.store().append(id, record).expect("the store takes it");
                }
            }
            Operation::Clear { topic } => {
                self.stream(topic);
                let epoch = self.epoch();
                let old = self.streams[TOPICS[topic]].clone();
                let id = self.store().clear(old.id, TOPICS[topic], epoch).expect("the store takes it");
                let (newest, records) = (old.newest, Vec::new());
                let stream = ModelStream { id, epoch, predecessor: None, newest, records };
                self.streams.insert(TOPICS[topic], stream);
                prop_assert_eq!(self.store().read(old.id, &ALL).expect("it can be read"), []);
            }
            Operation::Remove { topic } => {
                if let Some(stream) = self.streams.remove(TOPICS[topic]) {
                    self.store().remove(stream.id).expect("the store takes it");
                    prop_assert_eq!(self.store().read(stream.id, &ALL).expect("it can be read"), []);
                }
            }
            Operation::Skip { topic, offsets } => {
                let stream = self.stream(topic);
                stream.newest += offsets;
                let (id, newest) = (stream.id, stream.newest);
                self.store().skip_to(id, newest).expect("the store takes it");
            }
            Operation::Expire { ttl_ms } => {
                self.kept_since_ms = self.kept_since_ms.max(self.now_ms - ttl_ms);
                self.store().drop_expired(self.now_ms, ttl_ms);
                // Its thread drops segments before the next sync.
                let id = self.stream(0).id;
                let ticket = self.store().skip_to(id, 0).expect("the store takes it");
                self.store().request_sync();
                self.store().wait(ticket, TIMEOUT).expect("the disk takes it");
            }
            Operation::Read { topic, from, limit, max_bytes } => {
                self.stream(topic);
                self.check(TOPICS[topic], from, limit, max_bytes)?;
            }
            Operation::Reopen { clean, budget } => self.reopen(clean, budget)?,
            Operation::Crash { bytes } => self.crash(bytes)?,
        }
        Ok(())
    }

    /// Compares what can be read of a topic with the list.
    fn check(&mut self, topic: &str, from: u64, limit: usize, bytes: usize) -> Result<(), TestCaseError> {
        let stream = &self.streams[topic];
        let read = |read: &Read| self.store().read(stream.id, read).expect("it can be read");
        let all = read(&ALL);
        prop_assert!(stream.records.ends_with(&all));
        let dropped = &stream.records[..stream.records.len() - all.len()];
        prop_assert!(dropped.iter().all(|record| record.time_ms < self.kept_since_ms));

        let within = |mut records: Vec<Record>| {
            records.truncate(limit);
            let mut sum = 0;
            let fits = records.iter().take_while(|record| {
                sum += record.bytes.len();
                sum <= bytes
            });
            let count = fits.count().max(1).min(records.len());
            records.truncate(count);
            records
        };
        let start = from.max(all.first().map_or(0, |record| record.offset));
        let to = start.saturating_add(limit as u64);
        let expected = all.iter().filter(|record| (start..to).contains(&record.offset)).cloned().collect();
        let request = Read { from, order: Order::Ascending, limit, max_bytes: bytes };
        prop_assert_eq!(read(&request), within(expected));

        let newer_first = all.iter().rev().filter(|record| record.offset <= from).cloned().collect();
        let request = Read { order: Order::Descending, ..request };
        prop_assert_eq!(read(&request), within(newer_first));
        // Dropped messages do not come back.
        let gone = dropped.len();
        self.streams.get_mut(topic).expect("it is there").records.drain(..gone);
        Ok(())
    }

    fn close(&mut self, clean: bool) {
        let store = self.store.take().expect("the store is open");
        if clean {
            store.close_clean().expect("the disk takes it");
        }
    }

    fn reopen(&mut self, clean: bool, budget: usize) -> Result<(), TestCaseError> {
        let topics: Vec<_> = self.streams.keys().copied().collect();
        for topic in topics {
            self.check(topic, 0, 10, 100)?;
        }
        self.close(clean);
        let (store, recovered) = open_raw(&self.folder, &self.options);
        self.store = Some(store);
        prop_assert_eq!((recovered.was_clean(), recovered.lost_bytes()), (clean, 0));
        let streams = load(recovered, budget);
        prop_assert_eq!(streams.len(), self.streams.len());
        let loaded: usize = streams.iter().map(bytes_of).sum();
        prop_assert!(loaded <= budget);
        for found in streams {
            let stream = self.streams.get_mut(&*found.topic).expect("the topic has a stream");
            prop_assert_eq!((found.id, found.newest), (stream.id, stream.newest));
            if clean {
                prop_assert_eq!((found.epoch, found.predecessor), (stream.epoch, stream.predecessor));
            } else {
                let before = Predecessor { epoch: stream.epoch, newest: stream.newest };
                prop_assert_eq!(found.predecessor, Some(before));
                prop_assert_ne!(found.epoch, stream.epoch);
            }
            (stream.epoch, stream.predecessor) = (found.epoch, found.predecessor);
            let without_hole = without_hole(&stream.records, stream.newest);
            prop_assert!(without_hole.ends_with(&found.records));
            let kept = without_hole.iter().filter(|record| record.time_ms >= self.kept_since_ms);
            prop_assert!(budget < usize::MAX || found.records.len() >= kept.count());
        }
        Ok(())
    }

    fn crash(&mut self, bytes: u64) -> Result<(), TestCaseError> {
        self.close(false);
        let segment = self.folder.files("log").pop().expect("there is a segment");
        let file = OpenOptions::new().write(true).open(segment).expect("it can be opened");
        let length = file.metadata().expect("it has a length").len();
        file.set_len(length.saturating_sub(bytes)).expect("it can be cut");
        drop(file);
        let (store, recovered) = open_raw(&self.folder, &self.options);
        self.store = Some(store);
        prop_assert!(!recovered.was_clean());
        // Streams may be older ones, whose removal was lost. Nothing else may change.
        self.streams.clear();
        // Numbers of streams that did not reach the disk are given again.
        let mut appended = std::mem::take(&mut self.appended);
        for found in load(recovered, usize::MAX) {
            let mut kept = appended.remove(&found.id).unwrap_or_default();
            kept.retain(|record| record.offset <= found.newest);
            prop_assert!(without_hole(&kept, found.newest).ends_with(&found.records));
            let newest = found.newest;
            prop_assert!(found.predecessor.is_some_and(|before| before.newest == newest));
            let topic = TOPICS.into_iter().find(|topic| *topic == &*found.topic).expect("it is known");
            let RecoveredStream { id, epoch, predecessor, .. } = found;
            // Messages of this stream beyond the cut are no more.
            self.appended.insert(id, kept.clone());
            let stream = ModelStream { id, epoch, predecessor, newest, records: kept };
            prop_assert!(self.streams.insert(topic, stream).is_none(), "one stream for each topic");
        }
        Ok(())
    }
}

fn bytes_of(stream: &RecoveredStream) -> usize {
    stream.records.iter().map(|record| record.bytes.len()).sum()
}

/// Returns the last records up to an offset that have no hole.
fn without_hole(records: &[Record], newest: u64) -> &[Record] {
    let offsets = (0..=newest).rev();
    let count = records.iter().rev().zip(offsets).take_while(|(record, offset)| record.offset == *offset);
    &records[records.len() - count.count()..]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_keeps_what_a_list_keeps(operations in prop::collection::vec(operation(), 1..60)) {
        let mut model = Model::new();
        for operation in &operations {
            model.carry_out(operation)?;
        }
        model.reopen(true, usize::MAX)?;
        for (number, topic) in TOPICS.into_iter().enumerate() {
            model.stream(number);
            model.check(topic, 5, 70, 2000)?;
        }
    }
}
