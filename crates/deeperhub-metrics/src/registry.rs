use crate::encode::Encoded;
use crate::process::ProcessCollector;
use crate::{Counter, CounterVec, Gauge, Histogram, SharedCounter, SharedCounterVec, SharedGauge, SharedHistogram};
use prometheus_client::registry as prometheus;
use std::borrow::Cow;
use std::collections::HashSet;

/// The metrics of a program, and their text.
#[derive(Debug, Default)]
pub struct Registry {
    inner: prometheus::Registry,
    names: HashSet<String>,
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
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty registry whose metrics all carry these labels, such as the node's name.
    pub fn with_labels(labels: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let labels = labels.into_iter().map(|(name, value)| (Cow::Borrowed(name), Cow::Owned(value)));
        Self { inner: prometheus::Registry::with_labels(labels), names: HashSet::new() }
    }

    /// Adds a metric under its full name, as it will stand in the text and on dashboards.
    ///
    /// # Errors
    ///
    /// [`RegisterError`]; the metric is then not added.
    pub fn register(&mut self, name: &str, help: &str, unit: Unit, metric: &impl Metric) -> Result<(), RegisterError> {
        let kind = metric.kind();
        let base = self.base_name(name, unit, kind)?.to_owned();
        self.add(name, &base, help, unit, metric.encoded());
        Ok(())
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
        let base = self.base_name(name, unit, Kind::Counter)?.to_owned();
        self.add(name, &base, help, unit, Encoded::CounterFn(Box::new(read)));
        Ok(())
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
        let base = self.base_name(name, unit, Kind::Gauge)?.to_owned();
        self.add(name, &base, help, unit, Encoded::GaugeFn(Box::new(read)));
        Ok(())
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
        let base = self.base_name(name, Unit::None, Kind::Info)?.to_owned();
        self.add(name, &base, help, Unit::None, Encoded::Info(labels.into_iter().collect()));
        Ok(())
    }

    /// Adds what the operating system knows of this process: `process_cpu_seconds_total`,
    /// `process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_open_fds`,
    /// `process_max_fds`, `process_start_time_seconds` and `process_threads`.
    ///
    /// They are read from `/proc` for every text, and absent where there is none.
    pub fn register_process(&mut self) {
        if self.names.insert("process".to_owned()) {
            self.inner.register_collector(Box::new(ProcessCollector));
        }
    }

    /// All metrics as text that Prometheus reads, in the OpenMetrics 1.0 format.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Only the writer can fail, and a string's does not; a cut text without its `# EOF` would be
        // refused by the reader.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.inner);
        text
    }

    /// Checks a full name and takes off what the encoder adds by itself.
    fn base_name<'a>(&self, name: &'a str, unit: Unit, kind: Kind) -> Result<&'a str, RegisterError> {
        let fault = |rule| RegisterError::Name { name: name.to_owned(), rule };
        let mut bytes = name.bytes();
        let head = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
        if !head || !bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
            return Err(fault("lower-case letters, digits and underscores, starting with a letter"));
        }
        let base = match kind {
            Kind::Counter => name.strip_suffix("_total").ok_or_else(|| fault("a counter ends in _total"))?,
            Kind::Info => name.strip_suffix("_info").ok_or_else(|| fault("an info ends in _info"))?,
            Kind::Gauge | Kind::Histogram => name,
        };
        let reserved = ["_total", "_info", "_count", "_sum", "_bucket", "_created"];
        if reserved.iter().any(|suffix| base.ends_with(suffix)) {
            return Err(fault("an ending that another kind of metric has"));
        }
        let base = match unit.as_str() {
            None => base,
            Some(unit) => {
                let base = base.strip_suffix(unit).and_then(|base| base.strip_suffix('_'));
                base.ok_or_else(|| fault("ends in its unit"))?
            }
        };
        if base.is_empty() {
            return Err(fault("more than an ending"));
        }
        if self.names.contains(name) {
            return Err(RegisterError::Duplicate { name: name.to_owned() });
        }
        Ok(base)
    }

    fn add(&mut self, name: &str, base: &str, help: &str, unit: Unit, metric: Encoded) {
        self.names.insert(name.to_owned());
        // The encoder ends the sentence itself and escapes nothing here.
        let help = help.trim_end_matches('.').replace('\\', r"\\").replace('\n', r"\n");
        match unit.to_prometheus() {
            None => self.inner.register(base, help, metric),
            Some(unit) => self.inner.register_with_unit(base, help, unit, metric),
        }
    }
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
    /// Another metric has this name already, as when two servers share one registry.
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
    ($($instrument:ident is $kind:ident),* $(,)?) => {$(
        impl Metric for $instrument {}

        impl Instrument for $instrument {
            fn kind(&self) -> Kind {
                Kind::$kind
            }

            fn encoded(&self) -> Encoded {
                Encoded::$instrument(self.clone())
            }
        }
    )*};
}

instruments! {
    Counter is Counter,
    CounterVec is Counter,
    SharedCounter is Counter,
    SharedCounterVec is Counter,
    Gauge is Gauge,
    SharedGauge is Gauge,
    Histogram is Histogram,
    SharedHistogram is Histogram,
}
