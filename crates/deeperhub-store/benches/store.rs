//! Appends, start and reads of a store, measured: `cargo bench -p deeperhub-store`.
//!
//! `STORE_BENCH_FOLDER` names the folder; its disk is what is measured.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use deeperhub_store::{
    AppendError, Epoch, Options, Order, Read, Record, Store, StreamId, SyncPolicy, Wanted,
};

const MESSAGES: u64 = 1_000_000;
const TOPICS: u64 = 1000;
const BYTES: usize = 128;
const ALL: Wanted = Wanted { messages: usize::MAX, bytes: usize::MAX, since_ms: 0, overhead: 0 };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::var_os("STORE_BENCH_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("deeperhub-store-bench-{}", std::process::id()));
    let result = measure(&folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn measure(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut options = Options::default();
    println!("{MESSAGES} messages of {BYTES} B in {TOPICS} topics");
    let streams = {
        let (store, _) = Store::open(folder, &options, || 1)?;
        let streams = create(&store)?;
        report("appends, sync 100 ms, as fast as possible", || {
            append(&store, &streams, 0, MESSAGES / 2, None)
        })?;
        let pace = Some(100_000);
        report("appends, sync 100 ms, 100,000 a second", || {
            append(&store, &streams, MESSAGES / 2, MESSAGES, pace)
        })?;
        println!("on disk: {} MB", store.usage().disk_bytes / 1_000_000);
        store.close_clean()?;
        streams
    };
    for kind in ["clean", "unclean"] {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let (store, recovered) = Store::open(folder, &options, || fastrand::u64(..))?;
        let opened = start.elapsed();
        let mut count = 0;
        recovered.load(usize::MAX, |_| ALL, |stream| count += stream.records.len())?;
        println!(
            "start after a {kind} stop: open {opened:?}, with all {count} messages {:?}, {:.2} s of CPU",
            start.elapsed(),
            cpu_seconds() - cpu
        );
        if kind == "unclean" {
            read(&store, &streams)?;
        }
    }
    options.sync = SyncPolicy::Always;
    let (store, _) = Store::open(folder, &options, || fastrand::u64(..))?;
    let rounds = 200;
    let start = Instant::now();
    for number in 0..rounds {
        let record = Record { offset: MESSAGES + number, time_ms: 1, bytes: &[1; BYTES][..] };
        let ticket = store.append(streams[0], record)?;
        store.wait(ticket, Duration::from_secs(10))?;
    }
    println!("append and wait, sync always, one thread: {:?} each", start.elapsed() / rounds as u32);
    Ok(())
}

fn create(store: &Store) -> Result<Vec<StreamId>, AppendError> {
    (0..TOPICS).map(|topic| store.create_stream(&format!("bench.{topic}"), Epoch::from_bits(topic))).collect()
}

/// Appends messages, at most `pace` a second. Returns how long each append took.
fn append(store: &Store, streams: &[StreamId], from: u64, to: u64, pace: Option<u64>) -> Vec<Duration> {
    let start = Instant::now();
    let bytes = &[b'x'; BYTES][..];
    let mut times = Vec::with_capacity((to - from) as usize);
    for number in from..to {
        if let Some(pace) = pace.filter(|_| number % 100 == 0) {
            let due = Duration::from_secs_f64((number - from) as f64 / pace as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        let stream = streams[(number % TOPICS) as usize];
        let record = Record { offset: 1 + number / TOPICS, time_ms: 1_000_000 + number / 100, bytes };
        loop {
            let before = Instant::now();
            if store.append(stream, record).is_ok() {
                times.push(before.elapsed());
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    times
}

fn report(name: &str, run: impl FnOnce() -> Vec<Duration>) -> Result<(), Box<dyn std::error::Error>> {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let mut times = run();
    let (wall, cpu) = (start.elapsed(), cpu_seconds() - cpu);
    let count = times.len();
    times.sort_unstable();
    let at = |part: f64| times[((count - 1) as f64 * part) as usize];
    println!(
        "{name}: {:.0} a second; {:.2} µs of CPU each; append p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
        count as f64 / wall.as_secs_f64(),
        cpu / count as f64 * 1e6,
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    Ok(())
}

fn read(store: &Store, streams: &[StreamId]) -> Result<(), Box<dyn std::error::Error>> {
    for (order, limit) in [(Order::Descending, 100), (Order::Ascending, 100), (Order::Ascending, 1)] {
        let rounds = 1000;
        let start = Instant::now();
        for _ in 0..rounds {
            let from = fastrand::u64(100..MESSAGES / TOPICS - 100);
            let read = Read { from, order, limit, max_bytes: usize::MAX };
            let stream = streams[fastrand::usize(0..streams.len())];
            assert_eq!(store.read(stream, &read)?.len(), limit);
        }
        println!("read of {limit}, {order:?}, anywhere: {:?}", start.elapsed() / rounds);
    }
    Ok(())
}

/// Returns the CPU time of this process; 0 where the system does not tell it in `/proc`.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = behind_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}
