use crate::encode::Encoded;
use crate::format::{Format, to_prometheus};
use crate::process::{self, ProcessCollector};
use crate::{
    Counter, CounterVec, Gauge, Histogram, SharedCounter, SharedCounterVec, SharedGauge, SharedHistogram,
};
use prometheus_client::registry as prometheus;
use std::borrow::Cow;
use std::collections::HashSet;

/// The metrics of a program, and their text.
///
/// It holds on to the instruments that are registered, and reads them when a text is made; nothing is counted
/// through it. All checks are made on registering, so that a text is always well-formed.
#[derive(Debug, Default)]
pub struct Registry {
    inner: prometheus::Registry,
    /// Full names without `_total` and `_info`: what must be unique in the text.
    families: HashSet<String>,
    /// Names of the labels that all metrics carry.
    labels: Vec<&'static str>,
}

/// What a metric is measured in, which is also the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// A plain number: connections, messages.
    None,
    /// `…_bytes`.
    Bytes,
    /// `…_seconds`.
    Seconds,
    /// `…_ratio`, from 0 to 1.
    Ratio,
}

impl Registry {
    /// The media type of [`encode`](Self::encode)'s text, for `Content-Type`.
    pub const CONTENT_TYPE: &'static str = Format::OpenMetrics.content_type();

    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty registry whose metrics all carry these labels, such as the node's name.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Label`].
    pub fn with_labels(
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, RegisterError> {
        let labels: Vec<(&'static str, String)> = labels.into_iter().collect();
        let names: Vec<&'static str> = labels.iter().map(|&(name, _)| name).collect();
        check_labels("*", &names, &[])?;
        let labels = labels.into_iter().map(|(name, value)| (Cow::Borrowed(name), Cow::Owned(value)));
        let inner = prometheus::Registry::with_labels(labels);
        Ok(Self { inner, families: HashSet::new(), labels: names })
    }

    /// Adds a metric under its full name, as it will stand in the text and on dashboards.
    ///
    /// Names are lower-case letters, digits and underscores. A counter's ends in `_total`, before that
    /// stands the unit, if there is one. `help` is a sentence.
    ///
    /// # Errors
    ///
    /// [`RegisterError`]; the metric is then not added.
    pub fn register(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        metric: &impl Metric,
    ) -> Result<(), RegisterError> {
        if let Some((label, values)) = metric.label() {
            check_labels(name, &[label], &self.labels)?;
            let mut seen = HashSet::new();
            if let Some(value) = values.iter().find(|&value| !seen.insert(value)) {
                let rule = format!("value {value:?} of label {label:?} stands twice");
                return Err(RegisterError::Label { name: name.to_owned(), rule });
            }
        }
        self.add(name, help, unit, metric.kind(), metric.encoded())
    }

    /// Adds a counter whose number is kept elsewhere: `read` is called for every text.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register).
    pub fn register_counter_fn(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        self.add(name, help, unit, Kind::Counter, Encoded::CounterFn(Box::new(read)))
    }

    /// Adds a gauge whose number is kept elsewhere: `read` is called for every text.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register).
    pub fn register_gauge_fn(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        self.add(name, help, unit, Kind::Gauge, Encoded::GaugeFn(Box::new(read)))
    }

    /// Adds a metric that is always 1 and says something with its labels, such as
    /// `deeperhub_build_info{version="0.1.0"}`.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register); the name ends in `_info`.
    pub fn register_info(
        &mut self,
        name: &str,
        help: &str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<(), RegisterError> {
        let labels: Vec<(&str, String)> = labels.into_iter().collect();
        let names: Vec<&str> = labels.iter().map(|&(label, _)| label).collect();
        check_labels(name, &names, &self.labels)?;
        self.add(name, help, Unit::None, Kind::Info, Encoded::Info(labels))
    }

    /// Adds what the operating system knows of this process: `process_cpu_seconds_total`,
    /// `process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_open_fds`,
    /// `process_max_fds`, `process_start_time_seconds` and `process_threads`.
    ///
    /// They are read from `/proc` for every text, and absent where there is none. A second call does nothing.
    pub fn register_process(&mut self) {
        if !self.families.contains(process::FAMILIES[0]) {
            self.families.extend(process::FAMILIES.map(str::to_owned));
            self.inner.register_collector(Box::new(ProcessCollector::new()));
        }
    }

    /// All metrics in the [OpenMetrics](Format::OpenMetrics) format.
    #[must_use]
    pub fn encode(&self) -> String {
        self.encode_as(Format::OpenMetrics)
    }

    /// All metrics as text. Names and numbers are the same in each format.
    ///
    /// Workers go on counting meanwhile: each number is one that was right at some moment of the call.
    #[must_use]
    pub fn encode_as(&self, format: Format) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Only the writer can fail, and a string's does not; a cut text without its `# EOF` would be
        // refused by the reader.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.inner);
        match format {
            Format::OpenMetrics => text,
            Format::Prometheus => to_prometheus(&text),
        }
    }

    fn add(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        kind: Kind,
        metric: Encoded,
    ) -> Result<(), RegisterError> {
        let (family, base) = split_name(name, unit, kind)?;
        if !self.families.insert(family.to_owned()) {
            return Err(RegisterError::Duplicate { name: name.to_owned() });
        }
        // The encoder ends the sentence itself and escapes nothing here.
        let help = help.trim_end_matches('.');
        let help = help.replace('\\', r"\\").replace('\n', r"\n").replace('"', r#"\""#);
        match unit.to_prometheus() {
            None => self.inner.register(base, help, metric),
            Some(unit) => self.inner.register_with_unit(base, help, unit, metric),
        }
        Ok(())
    }
}

/// Checks a full name, and gives it without its kind's ending, and without the unit too: what the encoder adds
/// by itself.
fn split_name(name: &str, unit: Unit, kind: Kind) -> Result<(&str, &str), RegisterError> {
    let fault = |rule| RegisterError::Name { name: name.to_owned(), rule };
    if !is_name(name) {
        return Err(fault("lower-case letters, digits and underscores, starting with a letter"));
    }
    let family = match kind {
        Kind::Counter => name.strip_suffix("_total").ok_or_else(|| fault("a counter ends in _total"))?,
        Kind::Info => name.strip_suffix("_info").ok_or_else(|| fault("an info ends in _info"))?,
        Kind::Gauge | Kind::Histogram => name,
    };
    let reserved = ["_total", "_info", "_count", "_sum", "_bucket", "_created"];
    if reserved.iter().any(|suffix| family.ends_with(suffix)) {
        return Err(fault("an ending that another kind of metric has"));
    }
    let base = match unit.as_str() {
        None => family,
        Some(unit) => {
            let base = family.strip_suffix(unit).and_then(|base| base.strip_suffix('_'));
            base.ok_or_else(|| fault("ends in its unit"))?
        }
    };
    if base.is_empty() {
        return Err(fault("more than an ending"));
    }
    Ok((family, base))
}

/// Checks the labels that a metric adds to those of the registry.
fn check_labels(metric: &str, labels: &[&str], registry: &[&str]) -> Result<(), RegisterError> {
    for (at, label) in labels.iter().enumerate() {
        // The buckets of a histogram are told apart by `le`.
        let fault = if !is_name(label) || *label == "le" {
            "is none, or reserved"
        } else if registry.contains(label) || labels.iter().take(at).any(|earlier| earlier == label) {
            "stands twice"
        } else {
            continue;
        };
        return Err(RegisterError::Label {
            name: metric.to_owned(),
            rule: format!("label {label:?} {fault}"),
        });
    }
    Ok(())
}

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

    fn to_prometheus(self) -> Option<prometheus::Unit> {
        match self {
            Self::None => None,
            Self::Bytes => Some(prometheus::Unit::Bytes),
            Self::Seconds => Some(prometheus::Unit::Seconds),
            Self::Ratio => Some(prometheus::Unit::Other("ratio".to_owned())),
        }
    }
}

/// Why a metric was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name breaks a rule of the format: the programmer's fault.
    #[error("metric name {name:?} breaks a rule: {rule}")]
    Name {
        /// The name as given.
        name: String,
        /// What would be right.
        rule: &'static str,
    },
    /// A label or one of its values cannot stand in the text: the programmer's fault.
    #[error("metric {name:?} cannot be told apart: {rule}")]
    Label {
        /// The metric's name as given.
        name: String,
        /// What is wrong.
        rule: String,
    },
    /// Another metric has this name already, as when two servers share one registry. `a_total` and `a` are the
    /// same name to a scraper.
    #[error("metric name {name:?} is taken")]
    Duplicate {
        /// The name as given.
        name: String,
    },
}

/// What can be registered: this crate's instruments.
#[expect(private_bounds, reason = "the set is closed: how a metric is encoded stays private")]
pub trait Metric: Instrument {}

pub(crate) trait Instrument {
    fn kind(&self) -> Kind;
    fn encoded(&self) -> Encoded;

    /// What tells its numbers apart, and the values of that.
    fn label(&self) -> Option<(&'static str, &'static [&'static str])> {
        None
    }
}

/// The kinds of metrics as the text tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

macro_rules! instruments {
    ($($instrument:ident is $kind:ident $(by $label:ident)?),* $(,)?) => {$(
        impl Metric for $instrument {}

        impl Instrument for $instrument {
            fn kind(&self) -> Kind {
                Kind::$kind
            }

            fn encoded(&self) -> Encoded {
                Encoded::$instrument(self.clone())
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
