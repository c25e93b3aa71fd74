//! Metrics of the embedding program.

use deeperhub_metrics::{Metric, MetricData, MetricSnapshot, RegisterError, Registry, Unit};

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

/// Metric of a component beside the node that the node exports. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CustomMetric(Metric);

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
        let read = move || match kind {
            MetricKind::Counter => MetricData::counter(read()),
            MetricKind::Gauge => MetricData::Gauge(read().into()),
        };
        Self(Metric::new(name, help, unit, read))
    }

    /// Returns the metric's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Reads the current numbers.
    #[must_use]
    pub fn snapshot(&self) -> MetricSnapshot<'_> {
        self.0.snapshot()
    }

    pub(crate) fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        registry.add(self.0.clone())
    }
}

/// Metrics of components that declare them with [`deeperhub_metrics::metrics!`].
impl From<Metric> for CustomMetric {
    fn from(metric: Metric) -> Self {
        Self(metric)
    }
}
