//! Appends, waits, limits and reads of a store that runs.

mod common;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use common::{ALL, Folder, TIMEOUT, append, load, offsets, open, open_raw};
use deeperhub_store::{
    AppendError, Availability, Epoch, Options, Order, Read, Record, Store, StreamId, SyncPolicy, Wanted,
};

const NEVER: SyncPolicy = SyncPolicy::Interval(Duration::from_secs(3600));

fn with_sync(sync: SyncPolicy) -> Options {
    let mut options = Options::default();
    options.sync = sync;
    options
}

fn create(store: &Store, topic: &str) -> StreamId {
    store.create_stream(topic, Epoch::from_bits(7)).expect("the store takes it")
}

#[test]
fn an_append_is_told_when_it_is_durable() {
    let short = SyncPolicy::Interval(Duration::from_millis(1));
    for (sync, is_requested) in [(SyncPolicy::Always, false), (short, false), (NEVER, true)] {
        let folder = Folder::new("durable");
        let (sender, told) = channel();
        let mut options = with_sync(sync);
        options.on_progress = Some(Arc::new(move |progress| {
            let _ = sender.send(progress.clone());
        }));
        let (store, _) = open(&folder, &options);
        let tea = create(&store, "tea");
        for offset in 1..=10 {
            let record = Record { offset, time_ms: 1, bytes: &b"text"[..] };
            let ticket = store.append(tea, record).expect("the store takes it");
            if is_requested {
                store.request_sync();
            }
            store.wait(ticket, TIMEOUT).expect("the disk takes it");
            assert!(store.progress().durable >= ticket);
            let told = std::iter::from_fn(|| told.recv_timeout(TIMEOUT).ok());
            let told = told.into_iter().find(|progress| progress.durable >= ticket);
            assert_eq!(told.map(|told| told.availability), Some(Availability::Available));
        }
    }
}

#[test]
fn a_full_queue_refuses_at_once_and_gets_empty() {
    let folder = Folder::new("queue");
    let mut options = with_sync(NEVER);
    options.queue_bytes = 64 << 10;
    let (store, _) = open(&folder, &options);
    let tea = create(&store, "tea");
    let text = [1; 30_000];
    let mut offset = 0;
    let refused = (0..100_000).find_map(|_| {
        let record = Record { offset: offset + 1, time_ms: 1, bytes: &text[..] };
        let result = store.append(tea, record);
        offset += u64::from(result.is_ok());
        result.err()
    });
    assert_eq!(refused, Some(AppendError::QueueFull));
    assert!(store.usage().queued_bytes <= 64 << 10);
    store.sync(TIMEOUT).expect("the disk takes it");
    assert_eq!(store.usage().queued_bytes, 0);
    append(&store, tea, offset + 1, &text);
    let messages = store.read(tea, &ALL).expect("messages can be read");
    assert_eq!(offsets(&messages), Vec::from_iter(1..=offset + 1));

    let record = Record { offset: offset + 2, time_ms: 1, bytes: &[1; 65_536][..] };
    assert!(matches!(store.append(tea, record), Err(AppendError::TooLarge { .. })));
}

#[test]
fn the_disk_limit_drops_the_oldest_messages_and_no_stream() {
    let folder = Folder::new("limit");
    let mut options = with_sync(SyncPolicy::Interval(Duration::from_millis(1)));
    options.max_disk_bytes = Some(1 << 20);
    let (store, _) = open(&folder, &options);
    let (quiet, loud) = (create(&store, "quiet"), create(&store, "loud"));
    append(&store, quiet, 1, b"text");
    for offset in 1..=4000 {
        append(&store, loud, offset, &[1; 2000]);
        if offset % 50 == 0 {
            store.sync(TIMEOUT).expect("the disk takes it");
            assert!(store.usage().disk_bytes <= 1 << 20, "{:?}", store.usage());
        }
    }
    let kept = offsets(&store.read(loud, &ALL).expect("messages can be read"));
    assert!(kept.len() > 200 && kept.len() < 550, "{}", kept.len());
    assert_eq!(kept, Vec::from_iter(4001 - kept.len() as u64..=4000));
    assert_eq!(store.read(quiet, &ALL).expect("it can be read"), []);
    store.close_clean().expect("the disk takes it");
    drop(store);
    let (store, streams) = open(&folder, &options);
    let quiet = streams.iter().find(|stream| stream.id == quiet).expect("it is kept");
    assert_eq!((&*quiet.topic, quiet.epoch, quiet.newest), ("quiet", Epoch::from_bits(7), 1));
    append(&store, quiet.id, 2, b"more");
    assert_eq!(offsets(&store.read(quiet.id, &ALL).expect("it can be read")), [2]);
}

#[test]
fn expired_segments_are_removed_from_the_disk() {
    let folder = Folder::new("expiry");
    let mut options = with_sync(SyncPolicy::Always);
    options.bucket = Duration::from_millis(100);
    let (store, _) = open(&folder, &options);
    let tea = create(&store, "tea");
    // `append` takes the offset for the time.
    (1..=1000).for_each(|offset| append(&store, tea, offset, &[1; 100]));
    store.sync(TIMEOUT).expect("the disk takes it");
    assert_eq!((store.usage().segments, folder.files("log").len()), (11, 11));
    store.drop_expired(1000, 450);
    append(&store, tea, 1001, b"text");
    store.sync(TIMEOUT).expect("the disk takes it");
    assert_eq!(offsets(&store.read(tea, &ALL).expect("it can be read")), Vec::from_iter(500..=1001));
    assert_eq!((store.usage().segments, folder.files("log").len()), (6, 6));
    // Even the newest one, once all is old.
    store.drop_expired(100_000, 450);
    append(&store, tea, 1002, b"text");
    store.sync(TIMEOUT).expect("the disk takes it");
    store.drop_expired(100_000, 450);
    store.sync(TIMEOUT).expect("the disk takes it");
    let usage = store.usage();
    assert!(usage.segments <= 2 && usage.disk_bytes < 500, "{usage:?}");
    assert_eq!(usage.streams, 1);
    drop(store);

    // Segments that are dropped before their messages are loaded.
    let (store, recovered) = open_raw(&folder, &options);
    store.drop_expired(200_000, 450);
    store.sync(TIMEOUT).expect("the disk takes it");
    let ticket = store.skip_to(tea, 0).expect("the store takes it");
    store.wait(ticket, TIMEOUT).expect("the disk takes it");
    let streams = load(recovered, usize::MAX);
    assert_eq!((streams.len(), streams[0].newest, streams[0].records.len()), (1, 1002, 0));
}

#[test]
fn reads_go_both_ways_from_any_offset() {
    let folder = Folder::new("read");
    let mut options = with_sync(NEVER);
    options.segment_bytes = 64 << 10;
    let (store, _) = open(&folder, &options);
    let (tea, milk) = (create(&store, "tea"), create(&store, "milk"));
    for offset in 1..=2000 {
        append(&store, tea, offset, &[1; 100]);
        append(&store, milk, offset, &[2; 10]);
    }
    let read = |from, order, limit, max_bytes| {
        let read = Read { from, order, limit, max_bytes };
        offsets(&store.read(tea, &read).expect("messages can be read"))
    };
    assert_eq!(read(0, Order::Ascending, 3, 10_000), [1, 2, 3]);
    assert_eq!(read(1500, Order::Ascending, 3, 10_000), [1500, 1501, 1502]);
    assert_eq!(read(1500, Order::Ascending, 100, 250), [1500, 1501]);
    assert_eq!(read(1999, Order::Ascending, 100, 10_000), [1999, 2000]);
    assert_eq!(read(2001, Order::Ascending, 100, 10_000), []);
    assert_eq!(read(u64::MAX, Order::Descending, 3, 10_000), [2000, 1999, 1998]);
    assert_eq!(read(700, Order::Descending, 2, 10_000), [700, 699]);
    assert_eq!(read(2, Order::Descending, 9, 10_000), [2, 1]);
    // The first message is read whatever its length.
    assert_eq!(read(700, Order::Ascending, 9, 1), [700]);
    assert_eq!(read(700, Order::Descending, 9, 1), [700]);
    assert_eq!(read(700, Order::Ascending, 0, 1), []);
}

#[test]
fn messages_without_bytes_leave_no_hole_behind_a_spent_budget() {
    let folder = Folder::new("spent");
    let mut options = with_sync(NEVER);
    options.segment_bytes = 64 << 10;
    let (store, _) = open(&folder, &options);
    let stream = create(&store, "tea");
    (1..=5000).for_each(|offset| append(&store, stream, offset, &[]));
    (5001..=5004).for_each(|offset| append(&store, stream, offset, &[1; 30_000]));
    store.close_clean().expect("the disk takes it");
    drop(store);
    assert!(folder.files("log").len() > 2, "some files have no long message");

    let (_store, recovered) = open_raw(&folder, &options);
    let streams = load(recovered, 10_000);
    assert_eq!((streams[0].newest, streams[0].records.len()), (5004, 0));
}

#[test]
fn the_newest_messages_are_recovered_within_the_budget() {
    let folder = Folder::new("budget");
    let mut options = with_sync(NEVER);
    options.segment_bytes = 64 << 10;
    let (store, _) = open(&folder, &options);
    let (tea, milk) = (create(&store, "tea"), create(&store, "milk"));
    (1..=1000).for_each(|offset| append(&store, milk, offset, &[2; 100]));
    (1..=1000).for_each(|offset| append(&store, tea, offset, &[1; 100]));
    append(&store, milk, 1001, &[2; 100]);
    store.close_clean().expect("the disk takes it");
    drop(store);

    let all = Wanted { messages: usize::MAX, bytes: usize::MAX, since_ms: 0, overhead: 0 };
    let lengths = |budget: usize, wanted: Wanted| {
        let (store, recovered) = open_raw(&folder, &options);
        let mut lengths = Vec::new();
        let load = recovered.load(
            budget,
            |_| wanted,
            |stream| {
                assert_eq!(stream.records.last().map(|last| last.offset), Some(stream.newest));
                // Messages without room in the budget are told: all that are wanted, without a hole.
                let first = stream.records.first().map_or(stream.newest + 1, |record| record.offset);
                let older: u64 = stream.older.iter().map(|part| part.bytes).sum();
                let oldest = stream.older.first().map_or(first, |part| part.offset);
                assert_eq!((older % 100, oldest), (0, first - older / 100));
                assert!(wanted != all || oldest == 1);
                lengths.push((stream.topic.to_string(), stream.records.len()));
            },
        );
        load.expect("files can be read");
        store.close_clean().expect("the disk takes it");
        // The stream with the newest message comes first.
        assert_eq!((&*lengths[0].0, &*lengths[1].0), ("milk", "tea"));
        (lengths[0].1, lengths[1].1)
    };
    assert_eq!(lengths(usize::MAX, all), (1001, 1000));
    assert_eq!(lengths(50_099, all), (1, 499));
    assert_eq!(lengths(150_100, all), (501, 1000));
    assert_eq!(lengths(150_300, Wanted { overhead: 100, ..all }), (1, 750));
    assert_eq!(lengths(usize::MAX, Wanted { messages: 700, ..all }), (700, 700));
    assert_eq!(lengths(usize::MAX, Wanted { bytes: 4_050, ..all }), (40, 40));
    assert_eq!(lengths(usize::MAX, Wanted { since_ms: 901, ..all }), (101, 100));
}

#[test]
fn cleared_and_removed_messages_stay_away() {
    let folder = Folder::new("clear");
    let (store, _) = open(&folder, &with_sync(NEVER));
    let (tea, milk) = (create(&store, "tea"), create(&store, "milk"));
    (1..=100).for_each(|offset| append(&store, tea, offset, b"old"));
    append(&store, milk, 1, b"old");
    let cleared = store.clear(tea, "tea", Epoch::from_bits(8)).expect("the store takes it");
    append(&store, cleared, 101, b"new");
    store.remove(milk).expect("the store takes it");
    // Neither a stream that is no more, nor an offset that was used.
    append(&store, tea, 101, b"late");
    append(&store, cleared, 101, b"again");
    assert_eq!(offsets(&store.read(tea, &ALL).expect("it can be read")), []);
    assert_eq!(offsets(&store.read(cleared, &ALL).expect("it can be read")), [101]);
    assert_eq!(store.usage().withdrawn, 2);
    store.close_clean().expect("the disk takes it");
    let refused = store.append(cleared, Record { offset: 102, time_ms: 1, bytes: &b"late"[..] });
    assert_eq!(refused, Err(AppendError::Closed));
    drop(store);

    let (_, recovered) = open_raw(&folder, &Options::default());
    let streams = load(recovered, usize::MAX);
    assert_eq!(streams.len(), 1);
    assert_eq!((streams[0].epoch, streams[0].newest), (Epoch::from_bits(8), 101));
    assert_eq!(streams[0].records.iter().map(|record| &record.bytes[..]).collect::<Vec<_>>(), [b"new"]);
}

#[test]
fn threads_append_to_many_streams_at_a_time() {
    let folder = Folder::new("threads");
    let mut options = with_sync(SyncPolicy::Interval(Duration::from_millis(1)));
    options.segment_bytes = 128 << 10;
    let (store, _) = open(&folder, &options);
    std::thread::scope(|scope| {
        for topic in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let stream = create(store, &topic.to_string());
                for offset in 1..=3000 {
                    append(store, stream, offset, &[topic; 50]);
                    if offset % 500 == 0 {
                        let read = Read { from: offset, order: Order::Descending, limit: 5, max_bytes: 9999 };
                        let read = store.read(stream, &read).expect("messages can be read");
                        assert_eq!(offsets(&read), Vec::from_iter((offset - 4..=offset).rev()));
                    }
                }
            });
        }
    });
    drop(store);
    let (_, streams) = open(&folder, &options);
    assert_eq!(streams.len(), 4);
    for stream in streams {
        assert_eq!(offsets(&stream.records), Vec::from_iter(1..=3000));
        let topic: u8 = stream.topic.parse().expect("topics are numbers");
        assert!(stream.records.iter().all(|record| record.bytes == [topic; 50]));
    }
}
