use crate::HistogramSnapshot;
use crate::registry::Unit;

/// A metric's numbers at one moment, for other formats than text.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MetricSnapshot<'a> {
    /// The full name, as in the text.
    pub name: &'a str,
    /// A sentence.
    pub help: &'a str,
    /// What it is measured in.
    pub unit: Unit,
    /// The numbers.
    pub data: MetricData,
}

/// A metric's numbers by its kind.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum MetricData {
    /// It only grows; told apart by a label where there is one.
    Counter(Vec<(Option<Label>, Number)>),
    /// It goes up and down.
    Gauge(Number),
    /// How values are spread.
    Histogram(HistogramSnapshot),
    /// Always 1; the labels say something.
    Info(Vec<(&'static str, String)>),
}

/// Name and value of a label.
pub type Label = (&'static str, &'static str);

/// A number of one of the kinds that metrics have.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Number {
    /// A whole number.
    Whole(i64),
    /// One with a fraction.
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
