//! Metrics as numbers. The texts and exports of all formats are written from them.

use crate::{HistogramSnapshot, Unit};
use std::fmt;

/// A metric with its present numbers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MetricSnapshot<'a> {
    /// The full name, as in the Prometheus text.
    pub name: &'a str,
    /// The description, one sentence without its full stop.
    pub help: &'a str,
    /// The unit.
    pub unit: Unit,
    /// The numbers.
    pub data: MetricData,
}

/// The numbers of a metric. Each variant is a kind of metric.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum MetricData {
    /// Numbers that only grow: one for each value of the metric's label, or one without a label.
    Counter(Vec<(Option<LabelPair>, Number)>),
    /// A number that goes up and down.
    Gauge(Number),
    /// A distribution of values.
    Histogram(HistogramSnapshot),
    /// Information in labels. The value of such a metric is always 1.
    Info(Vec<(&'static str, String)>),
}

/// The name and the value of a label.
pub type LabelPair = (&'static str, &'static str);

impl MetricSnapshot<'_> {
    /// Returns the name of the metric's family: the full name without the suffix of its kind.
    pub(crate) fn family(&self) -> &str {
        self.name.strip_suffix(self.data.suffix_and_kind().0).unwrap_or(self.name)
    }
}

impl MetricData {
    /// Returns the number of a counter without a label.
    #[must_use]
    pub fn counter(count: impl Into<Number>) -> Self {
        Self::Counter(vec![(None, count.into())])
    }

    /// Returns the suffix of the names of this kind of metric, and the kind's name in OpenMetrics.
    pub(crate) const fn suffix_and_kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Counter(_) => ("_total", "counter"),
            Self::Gauge(_) => ("", "gauge"),
            Self::Histogram(_) => ("", "histogram"),
            Self::Info(_) => ("_info", "info"),
        }
    }
}

/// A whole or fractional number.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Number {
    /// A whole number that cannot be negative.
    Count(u64),
    /// A whole number.
    Whole(i64),
    /// A number with a fraction.
    Float(f64),
}

/// Implements conversions from the types of numbers.
macro_rules! from_numbers {
    ($($Variant:ident($number:ty)),+) => {$(
        impl From<$number> for Number {
            fn from(number: $number) -> Self {
                Self::$Variant(number)
            }
        }
    )+};
}

from_numbers!(Count(u64), Whole(i64), Float(f64));

impl fmt::Display for Number {
    /// Writes the number as in both text formats. A float always has a decimal point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Count(number) => number.fmt(f),
            Self::Whole(number) => number.fmt(f),
            Self::Float(number) if number == f64::INFINITY => f.write_str("+Inf"),
            Self::Float(number) if number.fract() == 0.0 => write!(f, "{number}.0"),
            Self::Float(number) => number.fmt(f),
        }
    }
}
