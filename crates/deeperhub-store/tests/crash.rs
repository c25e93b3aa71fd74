//! Processes that end at any moment, files that were cut or changed, folders that cannot be opened.

mod common;

#[path = "../../../tests/support/example.rs"]
mod example;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use common::{ALL, Folder, TIMEOUT, append, load, offsets, open, open_raw};
use deeperhub_store::{Epoch, OpenError, Options, Predecessor, Record, Store, StreamId, SyncPolicy};
use example::{Example, run_main};

/// Environment variable with the folder of a child process.
const FOLDER: &str = "STORE_FOLDER";

const TOPICS: u64 = 5;

/// Changes the bytes of a file at a place.
type Damage = fn(&mut Vec<u8>, usize);

fn options(sync: SyncPolicy) -> Options {
    let mut options = Options::default();
    options.sync = sync;
    // Several segments within the time of a test.
    options.segment_bytes = 256 << 10;
    options
}

/// Returns what the message with an offset contains.
fn content(stream: usize, offset: u64) -> Vec<u8> {
    format!("{stream}:{offset};").repeat(1 + (offset % 50) as usize).into_bytes()
}

/// Appends until the process is killed. Prints what is on the disk for good.
fn write_forever() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::var_os(FOLDER).ok_or("no folder")?;
    let options = options(SyncPolicy::Interval(Duration::from_millis(5)));
    let (store, recovered) = Store::open(folder, &options, || fastrand::u64(..))?;
    let mut streams: Vec<(StreamId, u64)> = Vec::new();
    for stream in load(recovered, 0) {
        println!("stream {} {} {}", stream.topic, stream.epoch, stream.newest);
        streams.push((stream.id, stream.newest));
    }
    streams.sort_unstable();
    for number in streams.len() as u64..TOPICS {
        let epoch = Epoch::from_bits(fastrand::u64(..));
        streams.push((store.create_stream(&number.to_string(), epoch)?, 0));
    }
    loop {
        let mut ticket = None;
        for number in 0..fastrand::usize(1..400) {
            let at = number % streams.len();
            let (id, newest) = &mut streams[at];
            *newest += 1;
            let bytes = &content(at, *newest)[..];
            ticket = Some(store.append(*id, Record { offset: *newest, time_ms: *newest, bytes })?);
        }
        if fastrand::bool() {
            store.request_sync();
        }
        store.wait(ticket.ok_or("nothing was appended")?, TIMEOUT)?;
        let newest = streams.iter().map(|(_, newest)| newest.to_string()).collect::<Vec<_>>();
        println!("durable {}", newest.join(" "));
    }
}

#[test]
#[ignore = "the process that is killed; another test starts it"]
fn process_that_writes() {
    run_main(write_forever);
}

#[test]
fn a_killed_process_loses_nothing_that_was_durable() {
    let folder = Folder::new("kill");
    let path = folder.path().to_str().expect("a path of this test is UTF-8");
    let mut epochs = BTreeMap::new();
    for round in 0..12 {
        let process = Example::start("process_that_writes", &[(FOLDER, path)]);
        let mut durable = String::new();
        for _ in 0..=fastrand::u32(0..40) {
            durable = process.wait_for("durable ");
        }
        // Kills it, while it writes.
        drop(process);
        let durable: Vec<u64> =
            durable.split(' ').map(|offset| offset.parse().expect("offsets are numbers")).collect();

        let (store, streams) = open(&folder, &options(SyncPolicy::Always));
        assert_eq!(streams.len() as u64, TOPICS, "round {round}");
        for stream in streams {
            let number: usize = stream.topic.parse().expect("topics are numbers");
            assert!(stream.newest >= durable[number], "round {round}: {} is lost", durable[number]);
            let messages = store.read(stream.id, &ALL).expect("messages can be read");
            assert_eq!(offsets(&messages), Vec::from_iter(1..=stream.newest), "round {round}");
            assert!(messages.iter().all(|message| message.bytes == content(number, message.offset)));
            assert_eq!(messages, stream.records);
            // The process had an epoch of its own, which this store renews once more.
            let before = stream.predecessor.expect("the stop was unclean");
            assert_eq!(before.newest, stream.newest);
            let seen = epochs.entry(number).or_insert_with(Vec::new);
            assert!(!seen.contains(&stream.epoch) && stream.epoch != before.epoch);
            seen.extend([before.epoch, stream.epoch]);
        }
    }
}

#[test]
fn a_torn_tail_is_cut_off() {
    let kept = Folder::new("torn");
    let epoch = Epoch::from_bits(1);
    {
        let (store, _) = open(&kept, &options(SyncPolicy::Always));
        let tea = store.create_stream("tea", epoch).expect("the store takes it");
        // Longer than a page, so that a lost page can lie within a message.
        (1..=20).for_each(|offset| append(&store, tea, offset, &[offset as u8; 9000]));
        store.close_clean().expect("the disk takes it");
    }
    let segment = &kept.files("log")[0];
    let (whole, name) = (fs::read(segment).expect("it can be read"), segment.file_name().expect("a name"));
    let damages: [(&str, Damage); 4] = [
        ("cut", |bytes, at| bytes.truncate(at)),
        ("a page of zeros", |bytes, at| bytes[at / 4096 * 4096..][..4096].fill(0)),
        ("a changed bit", |bytes, at| bytes[at] ^= 4),
        ("bytes of something else", |bytes, at| bytes[at..].fill(0xA5)),
    ];
    for (damage, change) in damages {
        for at in [whole.len() - 1, whole.len() - 5_000, whole.len() - 9_000, whole.len() - 30_000] {
            // Without the mark of a clean stop and without the summary, as after a crash.
            let folder = Folder::new("torn-copy");
            fs::create_dir_all(folder.path()).expect("it can be created");
            fs::copy(kept.path().join("VERSION"), folder.path().join("VERSION")).expect("it can be copied");
            let mut bytes = whole.clone();
            change(&mut bytes, at.min(whole.len() - 4096));
            fs::write(folder.path().join(name), bytes).expect("it can be written");

            let (store, recovered) = open_raw(&folder, &Options::default());
            assert!(recovered.lost_bytes() > 0 && !recovered.was_clean(), "{damage} at {at}");
            let streams = load(recovered, usize::MAX);
            let newest = streams[0].newest;
            assert!((16..20).contains(&newest), "{damage} at {at}: {newest}");
            assert_eq!(streams[0].predecessor, Some(Predecessor { epoch, newest }));
            assert_eq!(offsets(&streams[0].records), Vec::from_iter(1..=newest));
            append(&store, streams[0].id, newest + 1, b"more");
            let messages = store.read(streams[0].id, &ALL).expect("messages can be read");
            assert_eq!(offsets(&messages), Vec::from_iter(1..=newest + 1));
            store.close_clean().expect("the disk takes it");
            drop(store);
            let (_, recovered) = open_raw(&folder, &Options::default());
            assert_eq!((recovered.was_clean(), recovered.lost_bytes()), (true, 0));
        }
    }
}

#[test]
fn a_stream_without_its_newest_file_gets_a_new_epoch() {
    let folder = Folder::new("missing");
    for round in 0..2 {
        let (store, streams) = open(&folder, &options(SyncPolicy::Always));
        let tea = streams.first().map(|stream| stream.id);
        let tea = tea.map_or_else(|| store.create_stream("tea", Epoch::from_bits(1)), Ok);
        append(&store, tea.expect("the store takes it"), round + 1, b"text");
        store.close_clean().expect("the disk takes it");
    }
    fs::remove_file(folder.files("log").pop().expect("there is a segment")).expect("it can be removed");
    let (_, streams) = open(&folder, &Options::default());
    assert_eq!(streams[0].newest, 1);
    assert_eq!(streams[0].predecessor, Some(Predecessor { epoch: Epoch::from_bits(1), newest: 1 }));
}

#[test]
fn a_damaged_summary_is_replaced_by_the_messages() {
    let folder = Folder::new("summary");
    let (store, _) = open(&folder, &options(SyncPolicy::Always));
    let tea = store.create_stream("tea", Epoch::from_bits(1)).expect("the store takes it");
    (1..=100).for_each(|offset| append(&store, tea, offset, b"text"));
    store.close_clean().expect("the disk takes it");
    drop(store);
    for summary in folder.files("idx") {
        let mut bytes = fs::read(&summary).expect("it can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(summary, bytes).expect("it can be written");
    }
    let (_, streams) = open(&folder, &Options::default());
    assert_eq!((streams[0].epoch, streams[0].newest), (Epoch::from_bits(1), 100));
    assert_eq!(offsets(&streams[0].records), Vec::from_iter(1..=100));
}

/// If any bytes of any files change, nothing panics, no message changes, and an epoch goes
/// on only with its newest offset.
#[test]
fn changed_bytes_never_pass_for_what_was_written() {
    let kept = Folder::new("changed");
    let mut options = options(SyncPolicy::Always);
    options.bucket = Duration::from_millis(100);
    let (store, _) = open(&kept, &options);
    let numbers = [0, 1];
    let streams = numbers.map(|number| {
        store.create_stream(&number.to_string(), Epoch::from_bits(7)).expect("the store takes it")
    });
    for offset in 1..=400 {
        for (number, stream) in streams.into_iter().enumerate() {
            append(&store, stream, offset, &content(number, offset));
        }
    }
    store.close_clean().expect("the disk takes it");
    drop(store);
    let files = [kept.files("log"), kept.files("idx"), vec![kept.path().join("clean")]].concat();
    let mut opened = 0;
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = Folder::new("changed-copy");
        fs::create_dir_all(folder.path()).expect("it can be created");
        fs::copy(kept.path().join("VERSION"), folder.path().join("VERSION")).expect("it can be copied");
        for file in &files {
            let mut bytes = fs::read(file).expect("it can be read");
            for _ in 0..random.usize(0..3) {
                let at = random.usize(0..bytes.len());
                let changed = random.u8(..);
                // Lengths and counts are where large numbers do harm.
                bytes[at..].iter_mut().take(random.usize(1..5)).for_each(|byte| *byte = changed);
            }
            fs::write(folder.path().join(file.file_name().expect("a name")), bytes)
                .expect("it can be written");
        }
        let Ok((store, recovered)) = Store::open(folder.path(), &options, || 1) else { continue };
        opened += 1;
        let was_clean = recovered.was_clean();
        for stream in load(recovered, usize::MAX) {
            let number = stream.topic.parse().expect("topics do not change");
            assert!(!was_clean || (stream.epoch, stream.newest) == (Epoch::from_bits(7), 400), "{seed}");
            let all_read = store.read(stream.id, &ALL);
            for message in stream.records.iter().chain(all_read.iter().flatten()) {
                assert_eq!(message.bytes, content(number, message.offset), "seed {seed}");
            }
        }
    }
    assert!(opened > 30, "only {opened} of the folders opened");
}

#[test]
fn a_second_process_is_told_that_the_folder_is_in_use() {
    let folder = Folder::new("in-use");
    let path = folder.path().to_str().expect("a path of this test is UTF-8");
    let process = Example::start("process_that_writes", &[(FOLDER, path)]);
    process.wait_for("durable ");
    let error = Store::open(folder.path(), &Options::default(), || 1).expect_err("it is in use");
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(path) && error.to_string().contains("another process"), "{error}");
    drop(process);
    open(&folder, &Options::default());
}

#[test]
fn folders_that_cannot_be_used_are_named_with_the_reason() {
    let folder = Folder::new("refused");
    drop(open(&folder, &Options::default()));
    let open = |path: &std::path::Path| {
        let error = Store::open(path, &Options::default(), || 1).expect_err("it cannot be used");
        assert!(error.to_string().contains(path.to_str().expect("it is UTF-8")), "{error}");
        error
    };
    // Files with other names are of no concern.
    let other = folder.path().join("1.log");
    fs::write(&other, "a log of something else").expect("it can be written");
    drop(common::open(&folder, &Options::default()));
    fs::remove_file(other).expect("the store leaves it alone");

    let version = folder.path().join("VERSION");
    fs::write(&version, "deeperhub-store 2\n").expect("it can be written");
    let error = open(folder.path());
    assert!(matches!(&error, OpenError::Version { found, .. } if found == "deeperhub-store 2"), "{error}");

    fs::remove_file(&version).expect("it can be removed");
    let error = open(folder.path());
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");

    fs::write(&version, "deeperhub-store 1\n").expect("it can be written");
    let segment = folder.files("log").pop().expect("there is a segment");
    fs::write(&segment, "these are no messages of a store").expect("it can be written");
    let error = open(folder.path());
    assert!(matches!(&error, OpenError::Damaged { path, .. } if *path == segment), "{error}");

    // A file where the folder should be.
    let error = open(&version);
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
    let error = open(&version.join("below"));
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn a_new_folder_is_for_its_user_only() {
    let above = Folder::new("private");
    let folder = above.path().join("history");
    drop(Store::open(&folder, &Options::default(), || 1).expect("the store opens"));
    let mode = fs::metadata(folder).expect("it is there").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
}
