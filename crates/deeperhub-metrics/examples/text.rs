//! Counts on two workers, then prints the text that Prometheus would scrape.
//!
//! Each worker has a cell of every instrument: its own share of the number, which only this worker
//! writes. The printed numbers are the sums over all cells.
//!
//! Run it with `cargo run -p deeperhub-metrics --example text`.

use deeperhub_metrics::{Bounds, Cells, CounterVec, Format, Gauge, Histogram, Registry, labels, metrics};
use std::error::Error;
use std::thread;

labels! {
    /// Type of a message.
    enum MessageType("type") { Text = "text", Binary = "binary" }
}

metrics! {
    /// Metrics of a hub.
    struct Metrics {
        /// Open connections.
        active: Gauge = "hub_connections_active", per worker;
        /// Received messages.
        received: CounterVec<MessageType> = "hub_messages_received_total", per worker;
        /// Sizes of messages.
        sizes: Histogram = "hub_message_size_bytes", per worker, bounds: Bounds::bytes(65_536);
    }

    /// A worker's cells.
    struct WorkerMetrics;
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let cells = Cells::new(2);
    let metrics = Metrics::new(&cells);
    let mut registry = Registry::new();
    metrics.register(&mut registry)?;
    registry.register_process();

    let run_worker = |mut cells: WorkerMetrics| {
        cells.active.set(500);
        for size in 0..10_000 {
            cells.received.inc(if size % 10 == 0 { MessageType::Binary } else { MessageType::Text });
            cells.sizes.observe(size);
        }
    };
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let mut threads = Vec::new();
        for worker in 0..cells.workers() {
            let cells = metrics.worker(worker)?;
            threads.push(scope.spawn(move || run_worker(cells)));
        }
        threads.into_iter().try_for_each(|thread| Ok(thread.join().map_err(|_| "a worker panicked")?))
    })?;

    print!("{}", registry.encode_as(Format::Prometheus));
    Ok(())
}
