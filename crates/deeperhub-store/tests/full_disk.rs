//! A disk that takes nothing: the limit of file sizes of a process.
#![cfg(unix)]

mod common;

#[path = "../../../tests/support/example.rs"]
mod example;

use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use common::{ALL, Folder, TIMEOUT, append, offsets, open};
use deeperhub_store::{
    AppendError, Availability, Epoch, Options, ReadError, Record, Store, SyncPolicy, WaitError,
};
use example::run_main;
use rlimit::{Resource, getrlimit, setrlimit};

/// Limits the size of files that this process may write. Larger writes fail.
fn limit_files(bytes: u64) {
    let (_, hard) = getrlimit(Resource::FSIZE).expect("the limit can be read");
    setrlimit(Resource::FSIZE, bytes.min(hard), hard).expect("the limit can be changed");
}

fn survive_a_full_disk() -> Result<(), Box<dyn std::error::Error>> {
    for sync in [SyncPolicy::Always, SyncPolicy::Interval(Duration::from_millis(2))] {
        let folder = Folder::new("full");
        let (sender, changes) = channel();
        let mut options = Options::default();
        options.sync = sync;
        options.segment_bytes = 64 << 10;
        options.on_progress = Some(Arc::new(move |progress| {
            let _ = sender.send(progress.availability.clone());
        }));
        let (store, _) = Store::open(folder.path(), &options, || 1)?;
        let wait_for = |available: bool| {
            while (changes.recv_timeout(TIMEOUT).expect("the store tells it") == Availability::Available)
                != available
            {}
        };
        let tea = store.create_stream("tea", Epoch::from_bits(7))?;
        let milk = store.create_stream("milk", Epoch::from_bits(8))?;
        let (mut newest, mut milk_newest) = (0, 0);
        for round in 0..4 {
            // A whole file, a part of one, and nothing at all can still be written.
            limit_files([70_000, 3_000, 16, 0][round]);
            // Appends without a pause, so that some are queued while the writer fails.
            let mut ticket = None;
            let last = loop {
                let bytes = &[newest as u8; 1500][..];
                match store.append(tea, Record { offset: newest + 1, time_ms: newest, bytes }) {
                    Ok(queued) => (newest, ticket) = (newest + 1, Some(queued)),
                    Err(AppendError::QueueFull) => std::thread::yield_now(),
                    Err(AppendError::Unavailable(reason)) => break reason,
                    Err(error) => return Err(error.into()),
                }
                if newest > 200 {
                    limit_files(0);
                }
            };
            match store.wait(ticket.ok_or("nothing was appended")?, TIMEOUT) {
                Ok(()) | Err(WaitError::Unavailable(_)) => {}
                Err(error) => return Err(error.into()),
            }
            assert!(last.contains("too large"), "{last}");
            wait_for(false);
            if round > 1 {
                // Attempts of the writer that fail, too.
                (0..3).for_each(|_| wait_for(false));
            }
            let record = Record { offset: newest + 1, time_ms: 1, bytes: &b"text"[..] };
            match store.append(tea, record) {
                Err(AppendError::Unavailable(reason)) => assert_eq!(reason, last),
                // It came back in between, since a new file may still get some bytes.
                Ok(_) => newest += 1,
                Err(error) => return Err(error.into()),
            }
            match store.read(tea, &ALL) {
                Ok(_) | Err(ReadError::Unavailable(_)) => {}
                Err(error) => return Err(error.into()),
            }

            limit_files(u64::MAX);
            while store.availability() != Availability::Available {
                wait_for(true);
            }
            milk_newest += 1;
            append(&store, milk, milk_newest, b"milk");
            // Appends from before the error are there, in order.
            assert_eq!(offsets(&store.read(tea, &ALL)?), Vec::from_iter(1..=newest));
        }
        store.close_clean()?;
        drop(store);

        let (store, streams) = open(&folder, &Options::default());
        for stream in streams {
            let (epoch, last) = if stream.id == tea { (7, newest) } else { (8, milk_newest) };
            assert_eq!((stream.epoch, stream.newest), (Epoch::from_bits(epoch), last));
            assert_eq!(offsets(&stream.records), Vec::from_iter(1..=last));
            assert_eq!(offsets(&store.read(stream.id, &ALL)?), Vec::from_iter(1..=last));
        }
        // A stop while nothing can be written is unclean.
        append(&store, tea, newest + 1, b"last");
        limit_files(0);
        let error = store.close_clean().expect_err("nothing can be written");
        limit_files(u64::MAX);
        assert!(error.to_string().contains("new epochs"), "{error}");
        drop(store);
        let (_, streams) = open(&folder, &Options::default());
        let tea = streams.iter().find(|stream| stream.id == tea).ok_or("tea is lost")?;
        assert_eq!(tea.predecessor.map(|before| before.epoch), Some(Epoch::from_bits(7)));
    }
    println!("survived");
    Ok(())
}

#[test]
#[ignore = "the process with the limit; another test starts it"]
fn process_on_a_full_disk() {
    run_main(survive_a_full_disk);
}

#[test]
fn a_full_disk_makes_the_store_unavailable_until_there_is_room() {
    // The limit's signal, which would end the process, stays ignored in the program that follows.
    let ignore_signal = "trap '' XFSZ; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", ignore_signal, "sh"])
        .arg(std::env::current_exe().expect("a test knows its executable"))
        .args(["process_on_a_full_disk", "--exact", "--ignored", "--nocapture"])
        .env("RUN_EXAMPLE_MAIN", "1")
        .output()
        .expect("the process starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("survived"),
        "{}\n{printed}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
