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
//! | kind | instrument |
//! |---|---|
//! | a number that only grows | [`Counter`], [`CounterVec`] (one label with fixed values) |
//! | a number that goes up and down | [`Gauge`] |
//! | a distribution of values | [`Histogram`] |
//! | a number that other code stores | any [`Metric`] ([`Registry::register_gauge_fn`]) |
//!
//! Threads without a cell count with the instrument itself. They share one more cell, which they
//! write with atomic additions, so that is for code that does not run often.
//!
//! [`metrics!`] declares a struct of instruments, each with its name and HELP, and a struct of a
//! worker's cells. [`labels!`] declares the values of labels. [`Cells`] is the storage of the
//! cells. A [`Registry`] returns all metrics as numbers ([`Registry::snapshot`]), and writes
//! Prometheus text and OpenMetrics text from them. The example of [`metrics!`] shows all of it.
//!
//! When a worker drops the handle of a cell, the cell stays with its number, and another worker can
//! take it. A worker that replaces a crashed one therefore continues with its counts. The number of
//! a gauge would be outdated, so the new worker [sets](GaugeCell::set) it again.
//!
//! The crate has no sockets, clocks or runtimes: times are passed as
//! [`Duration`](std::time::Duration). The values of a label are fixed in the program, because
//! values from run time could grow without bound. There is no global registry.

mod bounds;
mod cells;
mod counter;
mod declare;
mod exemplar;
mod format;
mod gauge;
mod histogram;
mod label;
mod metric;
mod process;
mod registry;
mod snapshot;
mod text;

pub use bounds::Bounds;
pub use cells::{CellError, Cells};
pub use counter::{Counter, CounterCell, CounterVec, CounterVecCell};
pub use exemplar::Exemplar;
pub use format::Format;
pub use gauge::{Gauge, GaugeCell};
pub use histogram::{Histogram, HistogramCell, HistogramSnapshot};
pub use label::Label;
pub use metric::{Instrument, Metric, Unit};
pub use process::{ProcessUsage, parse_kibibytes, resident_bytes};
pub use registry::{RegisterError, Registry};
pub use snapshot::{LabelPair, MetricData, MetricSnapshot, Number};

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
