//! The registry of metrics.

use crate::format::Format;
use crate::metric::{Instrument, Metric, Unit};
use crate::process::{self, ProcessReader};
use crate::snapshot::{MetricData, MetricSnapshot};
use crate::text;
use std::collections::HashSet;
use std::time::Duration;

/// The metrics of a program, with their names and descriptions.
///
/// The registry reads its metrics for each snapshot, and writes each text from a snapshot. Counting
/// does not use the registry. All checks happen on registration, so a text is always well-formed.
#[derive(Debug, Default)]
pub struct Registry {
    /// The family names of all metrics: full names without the suffixes `_total` and `_info`. A
    /// family name must be unique in the text.
    families: HashSet<String>,
    /// Labels that every metric has.
    labels: Vec<(&'static str, String)>,
    /// All metrics in the order of their registration.
    metrics: Vec<Metric>,
    /// The reader of the process's metrics; `None` if they are not registered.
    process: Option<ProcessReader>,
}

impl Registry {
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
        check_label_names("*", labels.iter().map(|&(name, _)| name))?;
        Ok(Self { labels, ..Self::default() })
    }

    /// Adds a metric.
    ///
    /// # Errors
    ///
    /// Returns a [`RegisterError`] if the name or a label is invalid, or if another metric has the
    /// name. The metric is then not added.
    pub fn add(&mut self, metric: Metric) -> Result<(), RegisterError> {
        let snapshot = metric.snapshot();
        check_labels(&snapshot, &self.labels)?;
        check_name(&snapshot)?;
        if !self.families.insert(snapshot.family().to_owned()) {
            return Err(RegisterError::Duplicate { name: metric.name().to_owned() });
        }
        self.metrics.push(metric);
        Ok(())
    }

    /// Adds an instrument. Fails like [`add`](Self::add).
    pub fn register(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        instrument: &impl Instrument,
    ) -> Result<(), RegisterError> {
        self.add(Metric::of(name, help, unit, instrument))
    }

    /// Adds a counter whose number `read` returns. Fails like [`add`](Self::add).
    pub fn register_counter_fn(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        self.add(Metric::new(name, help, unit, move || MetricData::counter(read())))
    }

    /// Adds a gauge whose number `read` returns. Fails like [`add`](Self::add).
    pub fn register_gauge_fn(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        self.add(Metric::new(name, help, unit, move || MetricData::Gauge(read().into())))
    }

    /// Adds a gauge of a duration that `read` returns, in seconds. Fails like [`add`](Self::add).
    pub fn register_time_fn(
        &mut self,
        name: &str,
        help: &str,
        read: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        let read = move || MetricData::Gauge(read().as_secs_f64().into());
        self.add(Metric::new(name, help, Unit::Seconds, read))
    }

    /// Adds a metric whose value is always 1 and whose labels contain information, such as
    /// `deeperhub_build_info{version="0.1.0"}`. Fails like [`add`](Self::add).
    pub fn register_info(
        &mut self,
        name: &str,
        help: &str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<(), RegisterError> {
        let labels: Vec<(&'static str, String)> = labels.into_iter().collect();
        self.add(Metric::new(name, help, Unit::None, move || MetricData::Info(labels.clone())))
    }

    /// Adds the operating system's metrics of this process: `process_cpu_seconds_total`,
    /// `process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_open_fds`,
    /// `process_max_fds`, `process_start_time_seconds` and `process_threads`.
    ///
    /// The registry reads them from `/proc` for every snapshot. They are absent on systems without
    /// `/proc`. A second call does nothing.
    pub fn register_process(&mut self) {
        if self.process.is_none() {
            let families = process::METRICS.iter().map(|(name, _)| name.trim_end_matches("_total"));
            self.families.extend(families.map(str::to_owned));
            self.process = Some(ProcessReader::new());
        }
    }

    /// Returns all metrics as text. Names and numbers are the same in each format.
    #[must_use]
    pub fn encode_as(&self, format: Format) -> String {
        text::encode(format, &self.labels, &self.snapshot())
    }

    /// Returns all metrics as numbers, in the order of their registration. The metrics of the
    /// process are last.
    ///
    /// Workers can count during the call. Each number is correct for some moment of the call.
    #[must_use]
    pub fn snapshot(&self) -> Vec<MetricSnapshot<'_>> {
        let mut all: Vec<MetricSnapshot<'_>> = self.metrics.iter().map(Metric::snapshot).collect();
        if let Some(process) = &self.process {
            process.read(&mut all);
        }
        all
    }
}

/// Checks the full name of a metric.
fn check_name(metric: &MetricSnapshot<'_>) -> Result<(), RegisterError> {
    let (suffix, kind) = metric.data.suffix_and_kind();
    let family = metric.family();
    let base = match metric.unit.as_str() {
        None => Some(family),
        Some(unit) => family.strip_suffix(unit).and_then(|base| base.strip_suffix('_')),
    };
    let reserved = ["_total", "_info", "_count", "_sum", "_bucket", "_created"];
    let rule = if !is_name(metric.name) {
        "use lower-case letters, digits and underscores, starting with a letter".to_owned()
    } else if !metric.name.ends_with(suffix) {
        format!("the name of this kind ({kind}) must end in {suffix}")
    } else if reserved.iter().any(|suffix| family.ends_with(suffix)) {
        "the suffix is reserved for another kind of metric".to_owned()
    } else if base.is_none() {
        "the name must end in its unit".to_owned()
    } else if base == Some("") {
        "the name needs more than a suffix".to_owned()
    } else {
        return Ok(());
    };
    Err(RegisterError::Name { name: metric.name.to_owned(), rule })
}

/// Checks the labels of a metric, which also has the labels in `common`.
fn check_labels(metric: &MetricSnapshot<'_>, common: &[(&'static str, String)]) -> Result<(), RegisterError> {
    let common = common.iter().map(|&(name, _)| name);
    match &metric.data {
        MetricData::Counter(counts) => {
            let mut seen = HashSet::new();
            if let Some((label, _)) = counts.iter().find(|(label, _)| !seen.insert(label)) {
                let rule = format!("label value {label:?} is listed twice");
                return Err(RegisterError::Label { name: metric.name.to_owned(), rule });
            }
            let label = counts.first().and_then(|(label, _)| label.map(|(name, _)| name));
            check_label_names(metric.name, common.chain(label))
        }
        MetricData::Info(labels) => {
            check_label_names(metric.name, common.chain(labels.iter().map(|&(name, _)| name)))
        }
        MetricData::Gauge(_) | MetricData::Histogram(_) => Ok(()),
    }
}

fn check_label_names<'l>(metric: &str, labels: impl Iterator<Item = &'l str>) -> Result<(), RegisterError> {
    let mut seen = HashSet::new();
    for label in labels {
        // A histogram's buckets have the label `le`.
        let violation = if !is_name(label) || label == "le" {
            "is invalid or reserved"
        } else if !seen.insert(label) {
            "is listed twice"
        } else {
            continue;
        };
        let rule = format!("label {label:?} {violation}");
        return Err(RegisterError::Label { name: metric.to_owned(), rule });
    }
    Ok(())
}

/// Returns `true` if `name` is valid for a metric or a label.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
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
        rule: String,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bounds, Cells, Counter, CounterVec, Gauge, Histogram};
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    crate::labels! {
        enum Type("type") { Echo = "echo", Publish = "publish" }

        #[expect(dead_code, reason = "only the list of the values counts")]
        enum Twice("twice") {
            First = "same",
            Second = "same",
        }
    }

    /// Returns a registry with every kind of metric.
    fn registry() -> Registry {
        let cells = Cells::new(2);
        let mut registry = Registry::new();
        let active = Gauge::new(&cells);
        active.cell(0).unwrap().set(3);
        let received = CounterVec::new(&cells);
        received.add(Type::Echo, 0);
        received.cell(1).unwrap().add(Type::Publish, 7);
        let sizes = Histogram::new(&cells, Bounds::bytes(1024));
        for size in [0, 64, 65, 5000] {
            sizes.cell(0).unwrap().observe(size);
        }
        let bounds = Bounds::seconds(Duration::from_millis(1), Duration::from_millis(2));
        let times = Histogram::new(cells.shared(), bounds);
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
        assert_eq!(registry().encode_as(Format::OpenMetrics), expected);
    }

    #[test]
    fn prometheus_text_has_the_same_samples() {
        let (registry, format) = (registry(), Format::Prometheus);
        let (text, open_metrics) = (registry.encode_as(format), registry.encode_as(Format::OpenMetrics));
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
        let text = registry.encode_as(Format::OpenMetrics);
        assert!(text.ends_with(expected), "{text}");
        assert!(!registry.encode_as(Format::Prometheus).contains("trace_id"));
    }

    #[test]
    fn every_sample_has_the_common_labels() {
        let mut registry = Registry::with_labels([("node", "a\"b".to_owned())]).unwrap();
        let vec = CounterVec::<Type>::default();
        registry.register("hub_a_total", "A", Unit::None, &vec).unwrap();
        registry.register("hub_b", "B", Unit::None, &Gauge::default()).unwrap();
        registry.register_process();
        let text = registry.encode_as(Format::Prometheus);
        assert!(text.contains("hub_a_total{node=\"a\\\"b\",type=\"echo\"} 0\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.contains("{node=\"a\\\"b\""), "{line}");
        }
    }

    #[test]
    fn a_family_name_is_registered_only_once() {
        let mut registry = registry();
        let (counter, gauge) = (Counter::default(), Gauge::default());
        let original = registry.encode_as(Format::OpenMetrics);
        let duplicate = |name: &str| Err(RegisterError::Duplicate { name: name.to_owned() });
        let received = registry.register("hub_received_total", "", Unit::None, &counter);
        assert_eq!(received, duplicate("hub_received_total"));
        assert_eq!(registry.register("hub_received", "", Unit::None, &gauge), duplicate("hub_received"));
        assert_eq!(registry.register("hub_build", "", Unit::None, &gauge), duplicate("hub_build"));
        assert_eq!(registry.encode_as(Format::OpenMetrics), original);
        registry.register_process();
        registry.register_process();
        let cpu = registry.register("process_cpu_seconds_total", "", Unit::Seconds, &counter);
        assert_eq!(cpu, duplicate("process_cpu_seconds_total"));
    }

    #[test]
    fn invalid_names_are_rejected() {
        let mut registry = Registry::new();
        let (counter, gauge) = (Counter::default(), Gauge::default());
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
        assert_eq!(registry.encode_as(Format::OpenMetrics), "# EOF\n");
    }

    #[test]
    fn invalid_or_duplicate_labels_are_rejected() {
        let mut registry = Registry::with_labels([("node", "a".to_owned())]).unwrap();
        for (label, error) in [
            ("node", "label \"node\" is listed twice"),
            ("le", "label \"le\" is invalid or reserved"),
            ("", "label \"\" is invalid or reserved"),
            ("A", "label \"A\" is invalid or reserved"),
        ] {
            let added = registry.register_info("a_info", "", [(label, String::new())]);
            let rule = error.to_owned();
            assert_eq!(added, Err(RegisterError::Label { name: "a_info".to_owned(), rule }), "{label}");
        }
        let vec = registry.register("a_total", "", Unit::None, &CounterVec::<Twice>::default());
        assert!(matches!(vec, Err(RegisterError::Label { .. })), "{vec:?}");
        let twice = [("a", String::new()), ("a", String::new())];
        assert!(registry.register_info("a_info", "", twice.clone()).is_err());
        assert!(Registry::with_labels(twice).is_err());
        // A rejected metric does not reserve its name.
        assert_eq!(registry.register("a_total", "", Unit::None, &Counter::default()), Ok(()));
    }

    proptest! {
        #[test]
        fn help_and_label_values_cannot_break_the_text(help in "[a#\"\\\\\n\r{}]{0,12}|\\PC{0,12}", value in "[a#\"\\\\\n\r{}]{0,12}") {
            let mut registry = Registry::new();
            registry.register("a_total", &help, Unit::None, &Counter::default()).unwrap();
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
