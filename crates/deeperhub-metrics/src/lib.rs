//! Counters, gauges and histograms for hot loops, exposed as Prometheus text.
//!
//! A worker may update six instruments for each of a million messages a second. Locks would be too
//! slow, and so would atomic additions on cache lines that other workers write too. Therefore every
//! instrument has one cell for each worker: the worker's own share of the instrument's numbers.
//!
//! - Only the cell's owner, one worker at a time, writes the cell. It needs a plain load and store,
//!   not an atomic read-modify-write.
//! - All cells of a worker are adjacent in memory. No other worker writes to their cache lines.
//! - The value of an instrument is the sum of its cells. Readers compute it for each scrape.
//!
//! | kind | for workers | for any thread |
//! |---|---|---|
//! | a number that only grows | [`Counter`], [`CounterVec`] (one label with fixed values) | [`SharedCounter`], [`SharedCounterVec`] |
//! | a number that goes up and down | [`Gauge`] | [`SharedGauge`] |
//! | a distribution of values | [`Histogram`] | [`SharedHistogram`] |
//! | a number that other code stores | | [`Registry::register_counter_fn`], [`Registry::register_gauge_fn`] |
//!
//! A program declares a plain struct of instruments, all created with one [`Cells`], the storage of
//! the cells. Each worker gets its cells from the instruments:
//!
//! ```
//! use deeperhub_metrics::{Bounds, CellError, Cells, CounterVec, CounterVecCell, Format, Histogram};
//! use deeperhub_metrics::{HistogramCell, RegisterError, Registry, Unit};
//!
//! struct Metrics {
//!     /// Received messages by type.
//!     received: CounterVec,
//!     /// Sizes of received messages.
//!     sizes: Histogram,
//! }
//!
//! /// A worker's cells of the instruments.
//! struct MetricsCells {
//!     received: CounterVecCell,
//!     sizes: HistogramCell,
//! }
//!
//! impl Metrics {
//!     fn new(cells: &Cells) -> Self {
//!         let received = CounterVec::new(cells, "type", &["text", "binary"]);
//!         Self { received, sizes: Histogram::new(cells, Bounds::bytes(65_536)) }
//!     }
//!
//!     fn cells(&self, worker: usize) -> Result<MetricsCells, CellError> {
//!         Ok(MetricsCells { received: self.received.cell(worker)?, sizes: self.sizes.cell(worker)? })
//!     }
//!
//!     fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
//!         registry.register("hub_messages_received_total", "Received messages", Unit::None, &self.received)?;
//!         registry.register("hub_message_size_bytes", "Sizes of messages", Unit::Bytes, &self.sizes)
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let metrics = Metrics::new(&Cells::new(2));
//! let mut registry = Registry::new();
//! metrics.register(&mut registry)?;
//!
//! // On the thread of worker 1.
//! let mut cells = metrics.cells(1)?;
//! cells.received.inc(0);
//! cells.sizes.observe(120);
//!
//! let text = registry.encode_as(Format::Prometheus);
//! assert!(text.contains("hub_messages_received_total{type=\"text\"} 1\n"));
//! assert!(text.contains("hub_message_size_bytes_bucket{le=\"256.0\"} 1\n"));
//! # Ok(())
//! # }
//! ```
//!
//! When a worker drops the handle of a cell, the cell stays with its number, and another worker can
//! take it. A worker that replaces a crashed one therefore continues with its counts. The number of
//! a gauge would be outdated, so the new worker [sets](GaugeCell::set) it again.
//!
//! The crate has no sockets, clocks or runtimes: times are passed as
//! [`Duration`](std::time::Duration). The values of a label are fixed in the program, because
//! values from run time could grow without bound. There is no global registry.
//! [`prometheus_client`] encodes the text.

mod bounds;
mod cells;
mod counter;
mod encode;
mod exemplar;
mod format;
mod gauge;
mod histogram;
mod process;
mod registry;
mod snapshot;

pub use bounds::Bounds;
pub use cells::{CellError, Cells};
pub use counter::{Counter, CounterCell, CounterVec, CounterVecCell, SharedCounter, SharedCounterVec};
pub use exemplar::Exemplar;
pub use format::Format;
pub use gauge::{Gauge, GaugeCell, SharedGauge};
pub use histogram::{Histogram, HistogramCell, HistogramSnapshot, SharedHistogram};
pub use process::{ProcessUsage, parse_kibibytes, resident_bytes};
pub use registry::{Metric, RegisterError, Registry, Unit};
pub use snapshot::{Label, MetricData, MetricSnapshot, Number};

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
