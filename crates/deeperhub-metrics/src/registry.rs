//! The registry of metrics.

use crate::encode::{InstrumentHandle, SharedInstrument};
use crate::exemplar::{Exemplar, add_exemplars};
use crate::format::{Format, to_prometheus};
use crate::process::{self, ProcessCollector};
use crate::snapshot::MetricSnapshot;
use crate::{
    Counter, CounterVec, Gauge, Histogram, SharedCounter, SharedCounterVec, SharedGauge, SharedHistogram,
};
use prometheus_client::registry as prometheus;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// The metrics of a program, with their names and descriptions.
///
/// The registry holds the registered instruments and reads them for each text. Counting does not
/// use the registry. All checks happen on registration, so a text is always well-formed.
#[derive(Debug, Default)]
pub struct Registry {
    inner: prometheus::Registry,
    /// The family names of all metrics: full names without the suffixes `_total` and `_info`. A
    /// family name must be unique in the text.
    families: HashSet<String>,
    /// Names of the labels that every metric has.
    labels: Vec<&'static str>,
    /// All metrics in the order of their registration.
    metrics: Vec<RegisteredMetric>,
    /// The collector of the process's metrics; `None` if they are not registered.
    process: Option<ProcessCollector>,
}

/// A metric as it was registered.
#[derive(Debug)]
struct RegisteredMetric {
    name: String,
    help: String,
    unit: Unit,
    metric: SharedInstrument,
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

impl Registry {
    /// Media type of the text from [`encode`](Self::encode), for the `Content-Type` header.
    pub const CONTENT_TYPE: &'static str = Format::OpenMetrics.content_type();

    /// Creates an empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty registry whose metrics all have these labels, such as the node's name.
    ///
    /// # Errors
    ///
    /// Returns [`RegisterError::Label`] if a label is invalid or duplicate.
    pub fn with_labels(
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, RegisterError> {
        let labels: Vec<(&'static str, String)> = labels.into_iter().collect();
        let names: Vec<&'static str> = labels.iter().map(|&(name, _)| name).collect();
        check_label_names("*", &names, &[])?;
        let labels = labels.into_iter().map(|(name, value)| (Cow::Borrowed(name), Cow::Owned(value)));
        let inner = prometheus::Registry::with_labels(labels);
        Ok(Self { inner, labels: names, ..Self::default() })
    }

    /// Adds a metric. `name` is the full name, as in the text and on dashboards. `help` describes
    /// the metric in one sentence.
    ///
    /// A name consists of lower-case letters, digits and underscores. It ends with the unit. The
    /// name of a counter has `_total` after the unit.
    ///
    /// # Errors
    ///
    /// Returns a [`RegisterError`] if the name or a label is invalid, or if another metric has the
    /// name. The metric is then not added.
    pub fn register(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        metric: &impl Metric,
    ) -> Result<(), RegisterError> {
        if let Some((label, values)) = metric.label() {
            check_label_names(name, &[label], &self.labels)?;
            let mut seen = HashSet::new();
            if let Some(value) = values.iter().find(|&value| !seen.insert(value)) {
                let rule = format!("value {value:?} of label {label:?} is listed twice");
                return Err(RegisterError::Label { name: name.to_owned(), rule });
            }
        }
        self.add(name, help, unit, metric.kind(), metric.handle())
    }

    /// Adds a counter whose number is stored outside this crate. The registry calls `read` for
    /// every text and snapshot.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`register`](Self::register).
    pub fn register_counter_fn(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        self.add(name, help, unit, MetricKind::Counter, InstrumentHandle::CounterFn(Box::new(read)))
    }

    /// Adds a gauge whose number is stored outside this crate. The registry calls `read` for every
    /// text and snapshot.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`register`](Self::register).
    pub fn register_gauge_fn(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        self.add(name, help, unit, MetricKind::Gauge, InstrumentHandle::GaugeFn(Box::new(read)))
    }

    /// Adds a gauge of a duration that is stored outside this crate. It is exposed in seconds. The
    /// registry calls `read` for every text and snapshot.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`register`](Self::register). The name must end in `_seconds`.
    pub fn register_time_fn(
        &mut self,
        name: &str,
        help: &str,
        read: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        self.add(name, help, Unit::Seconds, MetricKind::Gauge, InstrumentHandle::TimeFn(Box::new(read)))
    }

    /// Adds a metric whose value is always 1 and whose labels contain information, such as
    /// `deeperhub_build_info{version="0.1.0"}`.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`register`](Self::register). The name must end in `_info`.
    pub fn register_info(
        &mut self,
        name: &str,
        help: &str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<(), RegisterError> {
        let labels: Vec<(&str, String)> = labels.into_iter().collect();
        let names: Vec<&str> = labels.iter().map(|&(label, _)| label).collect();
        check_label_names(name, &names, &self.labels)?;
        self.add(name, help, Unit::None, MetricKind::Info, InstrumentHandle::Info(labels))
    }

    /// Adds the operating system's metrics of this process: `process_cpu_seconds_total`,
    /// `process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_open_fds`,
    /// `process_max_fds`, `process_start_time_seconds` and `process_threads`.
    ///
    /// The registry reads them from `/proc` for every text and snapshot. They are absent on systems
    /// without `/proc`. A second call does nothing.
    pub fn register_process(&mut self) {
        if !self.families.contains(process::PROCESS_FAMILIES[0]) {
            self.families.extend(process::PROCESS_FAMILIES.map(str::to_owned));
            let collector = ProcessCollector::new();
            self.process = Some(collector.clone());
            self.inner.register_collector(Box::new(collector));
        }
    }

    /// Returns all metrics in the [OpenMetrics](Format::OpenMetrics) format.
    #[must_use]
    pub fn encode(&self) -> String {
        self.encode_as(Format::OpenMetrics)
    }

    /// Returns all metrics as text. Names and numbers are the same in each format.
    ///
    /// Workers can count during the call. Each number is correct for some moment of the call.
    #[must_use]
    pub fn encode_as(&self, format: Format) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Only the writer can fail, and writing into a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.inner);
        match format {
            Format::OpenMetrics => self.with_exemplars(text),
            Format::Prometheus => to_prometheus(&text),
        }
    }

    /// Returns all metrics as numbers, in the order of their registration. The metrics of the
    /// process are last. Workers can count during the call, as in [`encode_as`](Self::encode_as).
    #[must_use]
    pub fn snapshot(&self) -> Vec<MetricSnapshot<'_>> {
        let mut all: Vec<MetricSnapshot<'_>> =
            Vec::with_capacity(self.metrics.len() + process::PROCESS_FAMILIES.len());
        for RegisteredMetric { name, help, unit, metric } in &self.metrics {
            all.push(MetricSnapshot { name, help, unit: *unit, data: metric.snapshot() });
        }
        if let Some(process) = &self.process {
            all.extend(process.snapshot());
        }
        all
    }

    /// Adds the exemplars of all histograms to a text in the OpenMetrics format.
    fn with_exemplars(&self, text: String) -> String {
        let mut exemplars: HashMap<&str, Vec<Option<(f64, Exemplar)>>> = HashMap::new();
        for RegisteredMetric { name, metric, .. } in &self.metrics {
            if let InstrumentHandle::Histogram(histogram) = &*metric.0 {
                let snapshot = histogram.snapshot();
                if snapshot.exemplars().iter().any(Option::is_some) {
                    let exposed = |exemplar: &Option<Exemplar>| {
                        exemplar.map(|exemplar| (snapshot.bounds().exposed(exemplar.value), exemplar))
                    };
                    exemplars.insert(name, snapshot.exemplars().iter().map(exposed).collect());
                }
            }
        }
        if exemplars.is_empty() {
            return text;
        }
        add_exemplars(&text, |name| exemplars.get(name).map(Vec::as_slice))
    }

    fn add(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        kind: MetricKind,
        metric: InstrumentHandle,
    ) -> Result<(), RegisterError> {
        let (family, base) = family_and_base_name(name, unit, kind)?;
        if !self.families.insert(family.to_owned()) {
            return Err(RegisterError::Duplicate { name: name.to_owned() });
        }
        let metric = SharedInstrument::new(metric);
        self.metrics.push(RegisteredMetric {
            name: name.to_owned(),
            help: help.to_owned(),
            unit,
            metric: metric.clone(),
        });
        // The encoder adds the final dot, but does not escape the text.
        let help = help.trim_end_matches('.');
        let help = help.replace('\\', r"\\").replace('\n', r"\n").replace('"', r#"\""#);
        match unit.to_prometheus() {
            None => self.inner.register(base, help, metric),
            Some(unit) => self.inner.register_with_unit(base, help, unit, metric),
        }
        Ok(())
    }
}

/// Checks a full name. Returns the family name, which lacks the suffix of the kind, and the base
/// name, which also lacks the unit. The encoder adds unit and suffix to the base name.
fn family_and_base_name(name: &str, unit: Unit, kind: MetricKind) -> Result<(&str, &str), RegisterError> {
    let error = |rule| RegisterError::Name { name: name.to_owned(), rule };
    if !is_name(name) {
        return Err(error("use lower-case letters, digits and underscores, starting with a letter"));
    }
    let family = match kind {
        MetricKind::Counter => {
            name.strip_suffix("_total").ok_or_else(|| error("a counter must end in _total"))?
        }
        MetricKind::Info => name.strip_suffix("_info").ok_or_else(|| error("an info must end in _info"))?,
        MetricKind::Gauge | MetricKind::Histogram => name,
    };
    let reserved = ["_total", "_info", "_count", "_sum", "_bucket", "_created"];
    if reserved.iter().any(|suffix| family.ends_with(suffix)) {
        return Err(error("the suffix is reserved for another kind of metric"));
    }
    let base = match unit.as_str() {
        None => family,
        Some(unit) => {
            let base = family.strip_suffix(unit).and_then(|base| base.strip_suffix('_'));
            base.ok_or_else(|| error("the name must end in its unit"))?
        }
    };
    if base.is_empty() {
        return Err(error("the name needs more than a suffix"));
    }
    Ok((family, base))
}

/// Checks the labels that a metric adds to those of the registry.
fn check_label_names(metric: &str, labels: &[&str], registry: &[&str]) -> Result<(), RegisterError> {
    for (index, label) in labels.iter().enumerate() {
        // A histogram's buckets have the label `le`.
        let violation = if !is_name(label) || *label == "le" {
            "is invalid or reserved"
        } else if registry.contains(label) || labels.iter().take(index).any(|earlier| earlier == label) {
            "is listed twice"
        } else {
            continue;
        };
        return Err(RegisterError::Label {
            name: metric.to_owned(),
            rule: format!("label {label:?} {violation}"),
        });
    }
    Ok(())
}

/// Returns `true` if `name` is valid for a metric or a label.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

impl Unit {
    fn as_str(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Bytes => Some("bytes"),
            Self::Seconds => Some("seconds"),
            Self::Ratio => Some("ratio"),
        }
    }

    pub(crate) fn to_prometheus(self) -> Option<prometheus::Unit> {
        match self {
            Self::None => None,
            Self::Bytes => Some(prometheus::Unit::Bytes),
            Self::Seconds => Some(prometheus::Unit::Seconds),
            Self::Ratio => Some(prometheus::Unit::Other("ratio".to_owned())),
        }
    }
}

/// The reason why a metric was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name is invalid. This is a bug in the caller.
    #[error("invalid metric name {name:?}: {rule}")]
    Name {
        /// The name.
        name: String,
        /// The rule that the name breaks.
        rule: &'static str,
    },
    /// A label or one of its values is invalid. This is a bug in the caller.
    #[error("invalid labels of metric {name:?}: {rule}")]
    Label {
        /// The metric's name; `*` for a label of all metrics.
        name: String,
        /// The rule that the label breaks.
        rule: String,
    },
    /// Another metric already has this name, for example if two servers share a registry. The names
    /// `a_total` and `a` also conflict, because a scraper treats them as the same family.
    #[error("metric name {name:?} is already registered")]
    Duplicate {
        /// The name.
        name: String,
    },
}

/// An instrument of this crate, which a [`Registry`] can hold.
#[expect(private_bounds, reason = "the set is closed: how a metric is encoded stays private")]
pub trait Metric: Instrument {}

/// The part of [`Metric`] that only this crate uses.
pub(crate) trait Instrument {
    fn kind(&self) -> MetricKind;
    fn handle(&self) -> InstrumentHandle;

    /// Returns the name and the values of the instrument's label; `None` if it has no label.
    fn label(&self) -> Option<(&'static str, &'static [&'static str])> {
        None
    }
}

/// The kind of a metric, as in the text's `TYPE` lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// Implements [`Metric`] for instruments. `by label` marks instruments with a label.
macro_rules! instruments {
    ($($instrument:ident is $kind:ident $(by $label:ident)?),* $(,)?) => {$(
        impl Metric for $instrument {}

        impl Instrument for $instrument {
            fn kind(&self) -> MetricKind {
                MetricKind::$kind
            }

            fn handle(&self) -> InstrumentHandle {
                InstrumentHandle::$instrument(self.clone())
            }

            $(fn $label(&self) -> Option<(&'static str, &'static [&'static str])> {
                Some((Self::label(self), self.values()))
            })?
        }
    )*};
}

instruments! {
    Counter is Counter,
    CounterVec is Counter by label,
    SharedCounter is Counter,
    SharedCounterVec is Counter by label,
    Gauge is Gauge,
    SharedGauge is Gauge,
    Histogram is Histogram,
    SharedHistogram is Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bounds, Cells};
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    /// Returns a registry with every kind of metric.
    fn registry() -> Registry {
        let cells = Cells::new(2);
        let mut registry = Registry::new();
        let active = Gauge::new(&cells);
        active.cell(0).unwrap().set(3);
        let received = CounterVec::new(&cells, "type", &["echo", "publish"]);
        received.cell(1).unwrap().add(1, 7);
        let sizes = Histogram::new(&cells, Bounds::bytes(1024));
        for size in [0, 64, 65, 5000] {
            sizes.cell(0).unwrap().observe(size);
        }
        let times = SharedHistogram::new(Bounds::seconds(Duration::from_millis(1), Duration::from_millis(2)));
        times.observe_duration(Duration::from_micros(1500));
        let sent = Counter::new(&cells);
        sent.cell(0).unwrap().add(u64::MAX);
        registry.register("hub_active", "Open connections.", Unit::None, &active).unwrap();
        registry
            .register("hub_received_total", "Messages \"in\",\nby C:\\type.", Unit::None, &received)
            .unwrap();
        registry.register("hub_size_bytes", "Sizes", Unit::Bytes, &sizes).unwrap();
        registry.register("hub_wait_seconds", "Waits", Unit::Seconds, &times).unwrap();
        registry.register("hub_sent_bytes_total", "Bytes out", Unit::Bytes, &sent).unwrap();
        registry.register_counter_fn("hub_lost_total", "Lost", Unit::None, || 1).unwrap();
        registry.register_gauge_fn("hub_load_ratio", "Load", Unit::Ratio, || -1).unwrap();
        registry.register_info("hub_build_info", "Build", [("version", "1 \"a\"\n\\".to_owned())]).unwrap();
        registry
    }

    #[test]
    fn open_metrics_text_follows_the_format() {
        let expected = r##"# HELP hub_active Open connections.
# TYPE hub_active gauge
hub_active 3
# HELP hub_received Messages \"in\",\nby C:\\type.
# TYPE hub_received counter
hub_received_total{type="echo"} 0
hub_received_total{type="publish"} 7
# HELP hub_size_bytes Sizes.
# TYPE hub_size_bytes histogram
# UNIT hub_size_bytes bytes
hub_size_bytes_sum 5129.0
hub_size_bytes_count 4
hub_size_bytes_bucket{le="64.0"} 2
hub_size_bytes_bucket{le="256.0"} 3
hub_size_bytes_bucket{le="1024.0"} 3
hub_size_bytes_bucket{le="+Inf"} 4
# HELP hub_wait_seconds Waits.
# TYPE hub_wait_seconds histogram
# UNIT hub_wait_seconds seconds
hub_wait_seconds_sum 0.0015
hub_wait_seconds_count 1
hub_wait_seconds_bucket{le="0.001"} 0
hub_wait_seconds_bucket{le="0.0025"} 1
hub_wait_seconds_bucket{le="+Inf"} 1
# HELP hub_sent_bytes Bytes out.
# TYPE hub_sent_bytes counter
# UNIT hub_sent_bytes bytes
hub_sent_bytes_total 18446744073709551615
# HELP hub_lost Lost.
# TYPE hub_lost counter
hub_lost_total 1
# HELP hub_load_ratio Load.
# TYPE hub_load_ratio gauge
# UNIT hub_load_ratio ratio
hub_load_ratio -1
# HELP hub_build Build.
# TYPE hub_build info
hub_build_info{version="1 \"a\"\n\\"} 1
# EOF
"##;
        assert_eq!(registry().encode(), expected);
    }

    #[test]
    fn prometheus_text_has_the_same_samples() {
        let (registry, format) = (registry(), Format::Prometheus);
        let (text, open_metrics) = (registry.encode_as(format), registry.encode());
        fn samples(text: &str) -> Vec<&str> {
            text.lines().filter(|line| !line.starts_with('#')).collect()
        }
        assert_eq!(samples(&text), samples(&open_metrics));
        assert!(
            text.starts_with("# HELP hub_active Open connections.\n# TYPE hub_active gauge\nhub_active 3\n")
        );
        assert!(text.contains("# HELP hub_received_total Messages \"in\",\\nby C:\\\\type.\n"));
        assert!(text.contains("# TYPE hub_sent_bytes_total counter\nhub_sent_bytes_total "));
        assert!(text.contains("# TYPE hub_build_info gauge\nhub_build_info{"));
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    }

    #[test]
    fn exemplars_follow_their_buckets_in_open_metrics_text() {
        let times = Histogram::new(&Cells::new(1), Bounds::exact([10, 20]));
        let mut cell = times.cell(0).unwrap();
        cell.observe(15);
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        cell.exemplar(Duration::from_nanos(15), 0xa1, 0xb2, at);
        let mut registry = Registry::with_labels([("node", "a".to_owned())]).unwrap();
        registry.register("hub_wait", "Waits", Unit::None, &times).unwrap();
        let expected = r##"hub_wait_bucket{node="a",le="10.0"} 0
hub_wait_bucket{node="a",le="20.0"} 1 # {trace_id="000000000000000000000000000000a1",span_id="00000000000000b2"} 15 1700000000.250
hub_wait_bucket{node="a",le="+Inf"} 1
# EOF
"##;
        let text = registry.encode();
        assert!(text.ends_with(expected), "{text}");
        assert!(!registry.encode_as(Format::Prometheus).contains("trace_id"));
    }

    #[test]
    fn every_sample_has_the_common_labels() {
        let mut registry = Registry::with_labels([("node", "a\"b".to_owned())]).unwrap();
        let vec = SharedCounterVec::new("type", &["x"]);
        registry.register("hub_a_total", "A", Unit::None, &vec).unwrap();
        registry.register("hub_b", "B", Unit::None, &SharedGauge::new()).unwrap();
        registry.register_process();
        let text = registry.encode_as(Format::Prometheus);
        assert!(text.contains("hub_a_total{node=\"a\\\"b\",type=\"x\"} 0\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.contains("{node=\"a\\\"b\""), "{line}");
        }
    }

    #[test]
    fn a_family_name_is_registered_only_once() {
        let mut registry = registry();
        let (counter, gauge) = (SharedCounter::new(), SharedGauge::new());
        let original = registry.encode();
        let duplicate = |name: &str| Err(RegisterError::Duplicate { name: name.to_owned() });
        let received = registry.register("hub_received_total", "", Unit::None, &counter);
        assert_eq!(received, duplicate("hub_received_total"));
        assert_eq!(registry.register("hub_received", "", Unit::None, &gauge), duplicate("hub_received"));
        assert_eq!(registry.register("hub_build", "", Unit::None, &gauge), duplicate("hub_build"));
        assert_eq!(registry.encode(), original);
        registry.register_process();
        registry.register_process();
        let cpu = registry.register("process_cpu_seconds_total", "", Unit::Seconds, &counter);
        assert_eq!(cpu, duplicate("process_cpu_seconds_total"));
    }

    #[test]
    fn invalid_names_are_rejected() {
        let mut registry = Registry::new();
        let (counter, gauge) = (SharedCounter::new(), SharedGauge::new());
        for name in
            ["", "a", "_total", "A_total", "1_total", "a-b_total", "a_sum_total", "é_total", "a b_total"]
        {
            let error = registry.register(name, "", Unit::None, &counter).unwrap_err();
            assert!(matches!(error, RegisterError::Name { .. }), "{name}: {error}");
        }
        for name in ["a_total", "a_bucket", "a_count", "a_info", "a_created"] {
            let error = registry.register(name, "", Unit::None, &gauge).unwrap_err();
            assert!(matches!(error, RegisterError::Name { .. }), "{name}: {error}");
        }
        for name in ["bytes", "_bytes", "a_bytes_x", "abytes"] {
            let error = registry.register(name, "", Unit::Bytes, &gauge).unwrap_err();
            assert!(matches!(error, RegisterError::Name { .. }), "{name}: {error}");
        }
        assert_eq!(registry.encode(), "# EOF\n");
    }

    #[test]
    fn invalid_or_duplicate_labels_are_rejected() {
        let mut registry = Registry::with_labels([("node", "a".to_owned())]).unwrap();
        for (label, values) in [
            ("node", ["x", "y"]),
            ("le", ["x", "y"]),
            ("", ["x", "y"]),
            ("A", ["x", "y"]),
            ("type", ["x", "x"]),
        ] {
            let vec = SharedCounterVec::new(label, values.to_vec().leak());
            let error = registry.register("a_total", "", Unit::None, &vec).unwrap_err();
            assert!(matches!(error, RegisterError::Label { .. }), "{label}: {error}");
        }
        let twice = [("a", String::new()), ("a", String::new())];
        assert!(registry.register_info("a_info", "", twice.clone()).is_err());
        assert!(Registry::with_labels(twice).is_err());
        // A rejected metric does not reserve its name.
        assert_eq!(registry.register("a_total", "", Unit::None, &SharedCounter::new()), Ok(()));
    }

    proptest! {
        #[test]
        fn help_and_label_values_cannot_break_the_text(help in "[a#\"\\\\\n\r{}]{0,12}|\\PC{0,12}", value in "[a#\"\\\\\n\r{}]{0,12}") {
            let mut registry = Registry::new();
            registry.register("a_total", &help, Unit::None, &SharedCounter::new()).unwrap();
            registry.register_info("b_info", &help, [("v", value)]).unwrap();
            for (format, comments) in [(Format::OpenMetrics, 5), (Format::Prometheus, 4)] {
                let text = registry.encode_as(format);
                let lines: Vec<&str> = text.split_terminator('\n').collect();
                prop_assert_eq!(lines.len(), 2 + comments, "{}", text);
                prop_assert_eq!(lines.iter().filter(|line| line.starts_with("# ")).count(), comments);
            }
        }
    }
}
