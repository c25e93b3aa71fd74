//! Counters, gauges and histograms for hot loops, exposed as Prometheus text.
//!
//! A worker that counts six things for each of a million messages a second cannot afford a lock, or
//! an atomic addition on a cache line that other workers write too. Here every instrument has one
//! cell for each worker. A cell has one owner at a time, which alone writes it: with a plain load
//! and store, not a read-modify-write. The cells of a worker are adjacent, on cache lines of their
//! own. Readers add the cells up, once for each scrape.
//!
//! | kind | for workers | for any thread |
//! |---|---|---|
//! | only grows | [`Counter`], [`CounterVec`] (one label with fixed values) | [`SharedCounter`], [`SharedCounterVec`] |
//! | goes up and down | [`Gauge`] | [`SharedGauge`] |
//! | distribution of values | [`Histogram`] | [`SharedHistogram`] |
//! | kept elsewhere | | [`Registry::register_counter_fn`], [`Registry::register_gauge_fn`] |
//!
//! A crate declares a plain struct of instruments, created over one [`Cells`]. Each worker takes
//! its cells of them:
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
//! /// A worker's cells of them.
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
//! Dropping a cell frees it and keeps its number. A worker that replaces a dead one continues from
//! there. A gauge tells the present value, so such a worker [sets](GaugeCell::set) its cell again.
//!
//! The crate has no sockets, clocks or runtimes: times are passed as
//! [`Duration`](std::time::Duration). It has no labels with values from run time, since they could
//! grow without bound, and no global registry. [`prometheus_client`] encodes the text.

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
