//! Encoding of instruments with `prometheus_client`, and their snapshots.

use crate::snapshot::{MetricData, Number};
use crate::{
    Counter, CounterVec, Gauge, Histogram, HistogramSnapshot, SharedCounter, SharedCounterVec, SharedGauge,
    SharedHistogram,
};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// An instrument in the registry. The registry reads it for each text and each snapshot.
pub(crate) enum InstrumentHandle {
    Counter(Counter),
    CounterVec(CounterVec),
    SharedCounter(SharedCounter),
    SharedCounterVec(SharedCounterVec),
    CounterFn(Box<dyn Fn() -> u64 + Send + Sync>),
    Gauge(Gauge),
    SharedGauge(SharedGauge),
    GaugeFn(Box<dyn Fn() -> i64 + Send + Sync>),
    TimeFn(Box<dyn Fn() -> Duration + Send + Sync>),
    Histogram(Histogram),
    SharedHistogram(SharedHistogram),
    Info(Vec<(&'static str, String)>),
}

/// An instrument that the encoder and the registry share.
#[derive(Debug, Clone)]
pub(crate) struct SharedInstrument(pub(crate) Arc<InstrumentHandle>);

impl SharedInstrument {
    pub(crate) fn new(instrument: InstrumentHandle) -> Self {
        Self(Arc::new(instrument))
    }

    /// Returns the instrument's numbers.
    pub(crate) fn snapshot(&self) -> MetricData {
        let counter_data = |count: u64| MetricData::Counter(vec![(None, count.into())]);
        let vec_data = |label, label_values: &'static [&'static str], read: &dyn Fn(usize) -> u64| {
            let mut counts = Vec::with_capacity(label_values.len());
            for (index, label_value) in label_values.iter().enumerate() {
                counts.push((Some((label, *label_value)), read(index).into()));
            }
            MetricData::Counter(counts)
        };
        match &*self.0 {
            InstrumentHandle::Counter(counter) => counter_data(counter.value()),
            InstrumentHandle::SharedCounter(counter) => counter_data(counter.value()),
            InstrumentHandle::CounterFn(read) => counter_data(read()),
            InstrumentHandle::CounterVec(vec) => {
                vec_data(vec.label(), vec.values(), &|index| vec.value(index))
            }
            InstrumentHandle::SharedCounterVec(vec) => {
                vec_data(vec.label(), vec.values(), &|index| vec.value(index))
            }
            InstrumentHandle::Gauge(gauge) => MetricData::Gauge(gauge.value().into()),
            InstrumentHandle::SharedGauge(gauge) => MetricData::Gauge(gauge.value().into()),
            InstrumentHandle::GaugeFn(read) => MetricData::Gauge(Number::Whole(read())),
            InstrumentHandle::TimeFn(read) => MetricData::Gauge(Number::Float(read().as_secs_f64())),
            InstrumentHandle::Histogram(histogram) => MetricData::Histogram(histogram.snapshot()),
            InstrumentHandle::SharedHistogram(histogram) => MetricData::Histogram(histogram.snapshot()),
            InstrumentHandle::Info(labels) => MetricData::Info(labels.clone()),
        }
    }
}

impl EncodeMetric for SharedInstrument {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

impl EncodeMetric for InstrumentHandle {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(counter) => encode_counter(&mut encoder, counter.value()),
            Self::SharedCounter(counter) => encode_counter(&mut encoder, counter.value()),
            Self::CounterFn(read) => encode_counter(&mut encoder, read()),
            Self::CounterVec(vec) => {
                encode_counters(&mut encoder, vec.label(), vec.values(), |index| vec.value(index))
            }
            Self::SharedCounterVec(vec) => {
                encode_counters(&mut encoder, vec.label(), vec.values(), |index| vec.value(index))
            }
            Self::Gauge(gauge) => encoder.encode_gauge(&gauge.value()),
            Self::SharedGauge(gauge) => encoder.encode_gauge(&gauge.value()),
            Self::GaugeFn(read) => encoder.encode_gauge(&read()),
            Self::TimeFn(read) => encoder.encode_gauge(&read().as_secs_f64()),
            Self::Histogram(histogram) => encode_histogram(&mut encoder, &histogram.snapshot()),
            Self::SharedHistogram(histogram) => encode_histogram(&mut encoder, &histogram.snapshot()),
            Self::Info(labels) => encoder.encode_info(labels),
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Self::Counter(_)
            | Self::CounterVec(_)
            | Self::SharedCounter(_)
            | Self::SharedCounterVec(_)
            | Self::CounterFn(_) => MetricType::Counter,
            Self::Gauge(_) | Self::SharedGauge(_) | Self::GaugeFn(_) | Self::TimeFn(_) => MetricType::Gauge,
            Self::Histogram(_) | Self::SharedHistogram(_) => MetricType::Histogram,
            Self::Info(_) => MetricType::Info,
        }
    }
}

impl fmt::Debug for InstrumentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InstrumentHandle").field(&self.metric_type().as_str()).finish()
    }
}

fn encode_counter(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn encode_counters(
    encoder: &mut MetricEncoder<'_>,
    label: &str,
    values: &[&str],
    value: impl Fn(usize) -> u64,
) -> fmt::Result {
    for (index, &label_value) in values.iter().enumerate() {
        let labels = [(label, label_value)];
        encode_counter(&mut encoder.encode_family(&labels)?, value(index))?;
    }
    Ok(())
}

fn encode_histogram(encoder: &mut MetricEncoder<'_>, snapshot: &HistogramSnapshot) -> fmt::Result {
    let bounds = snapshot.bounds();
    let upper = bounds.upper().iter().map(|&bound| bounds.exposed(bound)).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = upper.zip(snapshot.buckets().iter().copied()).collect();
    let sum = bounds.exposed(snapshot.sum());
    encoder.encode_histogram::<NoLabelSet>(sum, snapshot.count(), &buckets, None)
}
