//! Counters, gauges and histograms for hot loops, with Prometheus text.

mod bounds;
mod cells;
mod counter;
mod encode;
mod format;
mod gauge;
mod histogram;
mod process;
mod registry;

pub use bounds::Bounds;
pub use cells::{CellError, Cells};
pub use counter::{Counter, CounterCell, CounterVec, CounterVecCell, SharedCounter, SharedCounterVec};
pub use format::Format;
pub use gauge::{Gauge, GaugeCell, SharedGauge};
pub use histogram::{Histogram, HistogramCell, HistogramSnapshot, SharedHistogram};
pub use registry::{Metric, RegisterError, Registry, Unit};
