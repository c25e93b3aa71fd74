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

impl MetricData {
    pub(crate) fn counter(count: impl Into<Number>) -> Self {
        Self::Counter(vec![(None, count.into())])
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

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Count(number)
    }
}

impl From<i64> for Number {
    fn from(number: i64) -> Self {
        Self::Whole(number)
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

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
