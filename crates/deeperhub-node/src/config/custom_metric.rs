//! Metrics of the embedding program.

use std::fmt;
use std::sync::Arc;

use deeperhub_metrics::{RegisterError, Registry, Unit};

/// Gauge of the embedding program that the node exports, such as the bytes held by its allocator.
#[derive(Debug, Clone, Copy)]
pub struct CustomGauge {
    /// Metric name, such as `deeperhub_memory_allocated_bytes`. The node does not start if the name
    /// is taken or malformed.
    pub name: &'static str,
    /// HELP text: a sentence without its full stop.
    pub help: &'static str,
    /// Unit of the value.
    pub unit: Unit,
    /// Returns the value. Called whenever metrics are read.
    pub read: fn() -> i64,
}

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Value that never falls.
    Counter,
    /// Current value, which may fall.
    Gauge,
}

/// Metric of a component beside the node that the node exports.
#[derive(Clone)]
pub struct CustomMetric {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: Unit,
    pub(crate) kind: MetricKind,
    pub(crate) read: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl CustomMetric {
    /// Creates a metric; `read` is called whenever metrics are read. The name of a counter ends in
    /// `_total`. The node does not start if a name is taken or malformed.
    pub fn new(
        name: &'static str,
        help: &'static str,
        unit: Unit,
        kind: MetricKind,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self { name, help, unit, kind, read: Arc::new(read) }
    }

    /// Returns the metric's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the current value.
    #[must_use]
    pub fn read(&self) -> u64 {
        (self.read)()
    }

    pub(crate) fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        let read = Arc::clone(&self.read);
        match self.kind {
            MetricKind::Counter => {
                registry.register_counter_fn(self.name, self.help, self.unit, move || read())
            }
            MetricKind::Gauge => {
                let read = move || i64::try_from(read()).unwrap_or(i64::MAX);
                registry.register_gauge_fn(self.name, self.help, self.unit, read)
            }
        }
    }
}

impl fmt::Debug for CustomMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomMetric")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
