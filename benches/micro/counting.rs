//! Metrics and events of each message, which are on by default and have to cost next to nothing.

use deeperhub_events::{EventBus, EventKind};
use deeperhub_metrics::{Bounds, Cells, Counter, CounterVec, Gauge, Histogram, Instrument, labels};
use divan::{Bencher, black_box};
use std::time::Duration;

labels! {
    enum MessageType("type") { Echo = "echo", Publish = "publish", Message = "message" }
}

/// Checks whether an event is observed, as the node does for each message. No observer is attached.
#[divan::bench]
fn unobserved_event(bencher: Bencher<'_, '_>) {
    let bus = EventBus::new(deeperhub_events::Config::default());
    bencher.bench_local(|| black_box(&bus).is_observed(black_box(EventKind::MessageSent)));
}

#[divan::bench]
fn count_one(bencher: Bencher<'_, '_>) {
    let counter = Counter::new(&Cells::new(1));
    let Ok(mut cell) = counter.cell(0) else { unreachable!("no other thread has the cell") };
    bencher.bench_local(|| cell.inc());
}

#[divan::bench]
fn count_one_by_label(bencher: Bencher<'_, '_>) {
    let counter = CounterVec::new(&Cells::new(1));
    let Ok(mut cell) = counter.cell(0) else { unreachable!("no other thread has the cell") };
    bencher.bench_local(|| cell.inc(black_box(MessageType::Message)));
}

#[divan::bench]
fn move_a_gauge(bencher: Bencher<'_, '_>) {
    let gauge = Gauge::new(&Cells::new(1));
    let Ok(mut cell) = gauge.cell(0) else { unreachable!("no other thread has the cell") };
    bencher.bench_local(|| cell.add(black_box(1)));
}

#[divan::bench(args = [10, 128, 16_384])]
fn observe_a_size(bencher: Bencher<'_, '_>, size: u64) {
    let histogram = Histogram::new(&Cells::new(1), Bounds::bytes(65_536));
    let Ok(mut cell) = histogram.cell(0) else { unreachable!("no other thread has the cell") };
    bencher.bench_local(|| cell.observe(black_box(size)));
}

/// Finds the bucket of a time with a binary search among many bounds.
#[divan::bench(args = [20_000, 1_000_000, 5_000_000_000])]
fn observe_a_time(bencher: Bencher<'_, '_>, nanos: u64) {
    let bounds = Bounds::fine_seconds(Duration::from_micros(10), Duration::from_secs(10));
    let histogram = Histogram::new(&Cells::new(1), bounds);
    let Ok(mut cell) = histogram.cell(0) else { unreachable!("no other thread has the cell") };
    bencher.bench_local(|| cell.observe(black_box(nanos)));
}

/// Reads one counter in a scrape, with 64 workers.
#[divan::bench]
fn sum_of_64_workers(bencher: Bencher<'_, '_>) {
    let counter = Counter::new(&Cells::new(64));
    bencher.bench_local(|| black_box(&counter).value());
}
