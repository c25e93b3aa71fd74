//! Metrics as numbers, for exporters.

use crate::HistogramSnapshot;
use crate::registry::Unit;

/// A metric with its present numbers, for exporters to formats other than text.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MetricSnapshot<'a> {
    /// The full name, as in the Prometheus text.
    pub name: &'a str,
    /// The description, one sentence.
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
    Counter(Vec<(Option<Label>, Number)>),
    /// A number that goes up and down.
    Gauge(Number),
    /// A distribution of values.
    Histogram(HistogramSnapshot),
    /// Information in labels. The value of such a metric is always 1.
    Info(Vec<(&'static str, String)>),
}

/// The name and the value of a label.
pub type Label = (&'static str, &'static str);

/// A whole or fractional number.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Number {
    /// A whole number.
    Whole(i64),
    /// A number with a fraction.
    Float(f64),
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        i64::try_from(number).map_or(Self::Float(number as f64), Self::Whole)
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
