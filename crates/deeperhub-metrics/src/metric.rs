//! Metrics: numbers with a name, a description and a unit.

use crate::CellError;
use crate::snapshot::{MetricData, MetricSnapshot};
use std::fmt;
use std::sync::Arc;

/// A metric, which a [`Registry`](crate::Registry) can hold: numbers with a name, a description and
/// a unit. Cheap to clone; clones are the same metric.
#[derive(Clone)]
pub struct Metric {
    inner: Arc<MetricInner>,
}

struct MetricInner {
    name: String,
    help: String,
    unit: Unit,
    read: Box<dyn Fn() -> MetricData + Send + Sync>,
}

impl Metric {
    /// Returns a metric of numbers that are stored outside this crate. `read` returns them for
    /// every snapshot, and once for the checks on registration.
    ///
    /// `name` is the full name, as in the text and on dashboards. It consists of lower-case
    /// letters, digits and underscores, and ends with the unit. The name of a counter has `_total`
    /// after the unit. `help` describes the metric in one sentence; its full stop may be absent.
    #[must_use]
    pub fn new(
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> MetricData + Send + Sync + 'static,
    ) -> Self {
        // A documentation comment begins with a space.
        let help = help.trim().trim_end_matches('.').to_owned();
        Self { inner: Arc::new(MetricInner { name: name.to_owned(), help, unit, read: Box::new(read) }) }
    }

    /// Returns an instrument as a metric, with a name and help as for [`new`](Self::new).
    #[must_use]
    pub fn of(name: &str, help: &str, unit: Unit, instrument: &impl Instrument) -> Self {
        let instrument = instrument.clone();
        Self::new(name, help, unit, move || instrument.read())
    }

    /// Returns the full name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Reads the present numbers.
    #[must_use]
    pub fn snapshot(&self) -> MetricSnapshot<'_> {
        let MetricInner { name, help, unit, read } = &*self.inner;
        MetricSnapshot { name, help, unit: *unit, data: read() }
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// A counter, gauge or histogram. Instruments are cheap to clone; clones are the same instrument.
pub trait Instrument: Clone + Send + Sync + 'static {
    /// The handle of a worker's cell.
    type Cell;

    /// Returns the handle of a worker's cell. `worker` counts from 0. A cell has at most one handle
    /// at a time. After the handle is dropped, another handle can be created; the cell keeps its
    /// numbers.
    ///
    /// # Errors
    ///
    /// Returns a [`CellError`] if there is no such worker, or if another handle of the cell exists.
    fn cell(&self, worker: usize) -> Result<Self::Cell, CellError>;

    /// Returns the present numbers: the sums of all cells.
    fn read(&self) -> MetricData;
}

/// The unit of a metric. A metric's name ends with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// A plain number: connections, messages.
    None,
    /// Bytes; the name ends in `_bytes`.
    Bytes,
    /// Seconds; the name ends in `_seconds`.
    Seconds,
    /// A ratio from 0 to 1; the name ends in `_ratio`.
    Ratio,
}

impl Unit {
    /// Returns the unit that a metric's name ends with.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let family = name.strip_suffix("_total").unwrap_or(name);
        let suffix = family.rsplit_once('_').map(|(_, suffix)| suffix);
        let units = [Self::Bytes, Self::Seconds, Self::Ratio];
        units.into_iter().find(|unit| unit.as_str() == suffix).unwrap_or(Self::None)
    }

    /// Returns the unit as in the text. Returns `None` for a plain number.
    pub(crate) const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Bytes => Some("bytes"),
            Self::Seconds => Some("seconds"),
            Self::Ratio => Some("ratio"),
        }
    }
}
