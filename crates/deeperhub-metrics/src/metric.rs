//! Metrics: instruments with a name, a description and a unit.

use crate::registry::{RegisterError, is_name};
use crate::snapshot::{MetricData, MetricSnapshot};
use crate::{Counter, CounterVec, Gauge, Histogram, Label};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A metric, which a [`Registry`](crate::Registry) can hold: what is counted, with a name, a
/// description and a unit.
///
/// `name` is the full name, as in the text and on dashboards. It consists of lower-case letters,
/// digits and underscores, and ends with the unit. The name of a counter has `_total` after the
/// unit. `help` describes the metric in one sentence; its full stop may be absent. Names are
/// checked when the metric is [added](crate::Registry::add).
///
/// Cheap to clone; clones are the same metric.
#[derive(Clone)]
pub struct Metric {
    pub(crate) name: String,
    help: String,
    unit: Unit,
    kind: Kind,
    /// Names of the labels.
    pub(crate) labels: Box<[&'static str]>,
    /// The values of the label of a [`CounterVec`].
    pub(crate) label_values: &'static [&'static str],
    read: Arc<dyn Fn() -> MetricData + Send + Sync>,
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

/// The kind of a metric, as in the text's `TYPE` lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// An instrument of this crate: [`Counter`], [`CounterVec`], [`Gauge`] or [`Histogram`].
#[expect(private_bounds, reason = "the set is closed: how an instrument is read stays private")]
pub trait Instrument: Read {
    /// The handle of a worker's cell.
    type Cell;
}

/// The part of [`Instrument`] that only this crate uses.
pub(crate) trait Read: Clone + Send + Sync + 'static {
    const KIND: Kind;

    /// The name of the label, and its values.
    const LABEL: Option<(&'static str, &'static [&'static str])> = None;

    fn read(&self) -> MetricData;
}

impl Metric {
    /// Returns an instrument as a metric.
    #[must_use]
    pub fn new(name: &str, help: &str, unit: Unit, instrument: &impl Instrument) -> Self {
        Self::of(name, help, unit, instrument)
    }

    fn of<I: Read>(name: &str, help: &str, unit: Unit, instrument: &I) -> Self {
        let instrument = instrument.clone();
        let metric = Self::reading(name, help, unit, I::KIND, move || instrument.read());
        match I::LABEL {
            Some((label, label_values)) => Self { labels: [label].into(), label_values, ..metric },
            None => metric,
        }
    }

    /// Returns a counter whose number is stored outside this crate. `read` is called for every
    /// snapshot.
    #[must_use]
    pub fn counter_fn(
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self::reading(name, help, unit, Kind::Counter, move || MetricData::counter(read()))
    }

    /// Returns a gauge whose number is stored outside this crate. `read` is called for every
    /// snapshot.
    #[must_use]
    pub fn gauge_fn(
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        Self::reading(name, help, unit, Kind::Gauge, move || MetricData::Gauge(read().into()))
    }

    /// Returns a gauge of a duration that is stored outside this crate, in seconds. `read` is
    /// called for every snapshot.
    #[must_use]
    pub fn time_fn(name: &str, help: &str, read: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        let read = move || MetricData::Gauge(read().as_secs_f64().into());
        Self::reading(name, help, Unit::Seconds, Kind::Gauge, read)
    }

    /// Returns a metric whose value is always 1 and whose labels contain information, such as
    /// `deeperhub_build_info{version="0.1.0"}`. The name ends in `_info`.
    #[must_use]
    pub fn info(name: &str, help: &str, labels: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let labels: Vec<(&'static str, String)> = labels.into_iter().collect();
        let names = labels.iter().map(|&(label, _)| label).collect();
        let read = move || MetricData::Info(labels.clone());
        Self { labels: names, ..Self::reading(name, help, Unit::None, Kind::Info, read) }
    }

    fn reading(
        name: &str,
        help: &str,
        unit: Unit,
        kind: Kind,
        read: impl Fn() -> MetricData + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            // A documentation comment begins with a space and ends with a full stop.
            help: help.trim().trim_end_matches('.').to_owned(),
            unit,
            kind,
            labels: Box::default(),
            label_values: &[],
            read: Arc::new(read),
        }
    }

    /// Returns the full name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the metric's present numbers.
    #[must_use]
    pub fn snapshot(&self) -> MetricSnapshot<'_> {
        MetricSnapshot { name: &self.name, help: &self.help, unit: self.unit, data: (self.read)() }
    }

    /// Checks the full name. Returns the family name, which lacks the suffix of the kind.
    pub(crate) fn family(&self) -> Result<&str, RegisterError> {
        let error = |rule| Err(RegisterError::Name { name: self.name.clone(), rule });
        if !is_name(&self.name) {
            return error("use lower-case letters, digits and underscores, starting with a letter");
        }
        let family = match (self.kind, self.name.strip_suffix("_total"), self.name.strip_suffix("_info")) {
            (Kind::Counter, Some(family), _) | (Kind::Info, _, Some(family)) => family,
            (Kind::Counter, ..) => return error("a counter must end in _total"),
            (Kind::Info, ..) => return error("an info must end in _info"),
            (Kind::Gauge | Kind::Histogram, ..) => &self.name,
        };
        let reserved = ["_total", "_info", "_count", "_sum", "_bucket", "_created"];
        if reserved.iter().any(|suffix| family.ends_with(suffix)) {
            return error("the suffix is reserved for another kind of metric");
        }
        match self.unit.as_str().map(|unit| family.strip_suffix(unit).and_then(|base| base.strip_suffix('_')))
        {
            Some(None) => error("the name must end in its unit"),
            Some(Some("")) => error("the name needs more than a suffix"),
            None | Some(Some(_)) => Ok(family),
        }
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Unit {
    /// Returns the unit that a metric's name ends with.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let family = name.strip_suffix("_total").unwrap_or(name);
        let suffix = family.rsplit_once('_').map(|(_, suffix)| suffix);
        let units = [Self::Bytes, Self::Seconds, Self::Ratio];
        units.into_iter().find(|unit| suffix == unit.as_str()).unwrap_or(Self::None)
    }

    /// Returns the unit as in the text, without an underscore. Returns `None` for a plain number.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Bytes => Some("bytes"),
            Self::Seconds => Some("seconds"),
            Self::Ratio => Some("ratio"),
        }
    }
}

impl Instrument for Counter {
    type Cell = crate::CounterCell;
}

impl Read for Counter {
    const KIND: Kind = Kind::Counter;

    fn read(&self) -> MetricData {
        MetricData::counter(self.value())
    }
}

impl<L: Label> Instrument for CounterVec<L> {
    type Cell = crate::CounterVecCell<L>;
}

impl<L: Label> Read for CounterVec<L> {
    const KIND: Kind = Kind::Counter;
    const LABEL: Option<(&'static str, &'static [&'static str])> = Some((L::NAME, L::VALUES));

    fn read(&self) -> MetricData {
        let counts = L::VALUES.iter().zip(self.sums());
        MetricData::Counter(counts.map(|(value, count)| (Some((L::NAME, *value)), count.into())).collect())
    }
}

impl Instrument for Gauge {
    type Cell = crate::GaugeCell;
}

impl Read for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn read(&self) -> MetricData {
        MetricData::Gauge(self.value().into())
    }
}

impl Instrument for Histogram {
    type Cell = crate::HistogramCell;
}

impl Read for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn read(&self) -> MetricData {
        MetricData::Histogram(self.snapshot())
    }
}
