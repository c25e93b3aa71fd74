//! Counters, gauges and histograms for hot loops, with Prometheus text.
//!
//! A worker that counts six things for each of a million messages a second cannot afford a lock, nor an atomic
//! addition on a line that other workers write too. Here every instrument has a cell for each worker; the cell has
//! one owner at a time, which alone writes it: a plain load and store, no read-modify-write. A worker's cells stand
//! side by side on cache lines of their own. Readers add the cells up, which happens once per scrape.
//!
//! | kind | for workers | for any thread |
//! |---|---|---|
//! | only grows | [`Counter`], [`CounterVec`] (one label, values known beforehand) | [`SharedCounter`], [`SharedCounterVec`] |
//! | goes up and down | [`Gauge`] | [`SharedGauge`] |
//! | how values are spread | [`Histogram`] | [`SharedHistogram`] |
//! | kept elsewhere | | [`Registry::register_counter_fn`], [`Registry::register_gauge_fn`] |
//!
//! A crate declares a plain struct of instruments, made over one [`Cells`], and each worker takes its part of it:
//!
//! ```
//! use deeperhub_metrics::{Bounds, CellError, Cells, CounterVec, CounterVecCell, Format, Histogram};
//! use deeperhub_metrics::{HistogramCell, RegisterError, Registry, Unit};
//!
//! struct Metrics {
//!     /// Messages that came, by type.
//!     received: CounterVec,
//!     /// Their sizes.
//!     sizes: Histogram,
//! }
//!
//! /// A worker's part of it.
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
//!         registry.register("hub_messages_received_total", "Messages that came", Unit::None, &self.received)?;
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
//! Dropping a cell gives it back with its number: a worker that replaces one that died goes on counting from there.
//! Only gauges tell of the present, so such a worker [sets](GaugeCell::set) its part anew.
//!
//! Absent on purpose: sockets, clocks and runtimes (time comes as a [`Duration`](std::time::Duration)), labels whose
//! values are made up at run time (they would grow without bound), and a global registry. The text comes from
//! [`prometheus_client`].

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

/// The README's example runs with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
