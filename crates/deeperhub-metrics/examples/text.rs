//! Counts on two workers, then prints the text that Prometheus would scrape.
//!
//! Each worker has a cell of every instrument: its own share of the number, which only this worker
//! writes. The printed numbers are the sums over all cells.
//!
//! Run it with `cargo run -p deeperhub-metrics --example text`.

use deeperhub_metrics::{Bounds, CellError, Cells, CounterVec, Format, Gauge, Histogram, Registry, Unit};
use std::error::Error;
use std::thread;

/// Values of the label `type`. A counter of a [`CounterVec`] is selected by its index in this list.
const TYPES: &[&str] = &["text", "binary"];
const TEXT: usize = 0;
const BINARY: usize = 1;

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

    let run_worker = |worker| -> Result<(), CellError> {
        let mut active_cell = active.cell(worker)?;
        let mut received_cell = received.cell(worker)?;
        let mut sizes_cell = sizes.cell(worker)?;
        active_cell.set(500);
        for size in 0..10_000 {
            received_cell.inc(if size % 10 == 0 { BINARY } else { TEXT });
            sizes_cell.observe(size);
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let mut threads = Vec::new();
        for worker in 0..cells.workers() {
            threads.push(scope.spawn(move || run_worker(worker)));
        }
        for thread in threads {
            thread.join().map_err(|_| "a worker panicked")??;
        }
        Ok(())
    })?;

    print!("{}", registry.encode_as(Format::Prometheus));
    Ok(())
}
