//! Counts on two workers, then prints the text that Prometheus would scrape.
//!
//! Run it with `cargo run -p deeperhub-metrics --example text`.

use deeperhub_metrics::{Bounds, CellError, Cells, CounterVec, Format, Gauge, Histogram, Registry, Unit};
use std::error::Error;
use std::thread;

const TYPES: &[&str] = &["text", "binary"];

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let cells = Cells::new(2);
    let active = Gauge::new(&cells);
    let received = CounterVec::new(&cells, "type", TYPES);
    let sizes = Histogram::new(&cells, Bounds::bytes(65_536));

    let mut registry = Registry::new();
    registry.register("hub_connections_active", "Open connections", Unit::None, &active)?;
    registry.register("hub_messages_received_total", "Received messages", Unit::None, &received)?;
    registry.register("hub_message_size_bytes", "Sizes of messages", Unit::Bytes, &sizes)?;
    registry.register_process();

    let work = |worker| {
        let (mut active, mut received) = (active.cell(worker)?, received.cell(worker)?);
        let mut sizes = sizes.cell(worker)?;
        active.set(500);
        for size in 0..10_000 {
            received.inc(usize::from(size % 10 == 0));
            sizes.observe(size);
        }
        Ok::<(), CellError>(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cells.workers()).map(|worker| scope.spawn(move || work(worker))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| Ok::<(), Box<dyn Error>>(worker.join().map_err(|_| "a worker panicked")??))
    })?;

    print!("{}", registry.encode_as(Format::Prometheus));
    Ok(())
}
