//! Configuration of the export over OTLP.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use deeperhub_args::{HttpUrl, Ratio, Switchable};
use deeperhub_node::trace::Sampler;

/// Name and version of the program that embeds the hub: `service.name` and `service.version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Service {
    /// Creates a service. The variables `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override
    /// its name and version.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into() }
    }
}

/// Settings of a program that take precedence over the `OTEL_*` variables.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Base URL of the collector for traces and metrics; [`Switchable::Off`] disables the export.
    pub endpoint: Option<Switchable<HttpUrl>>,
    /// Share of new traces that are recorded. The sampling decision of a caller's trace is kept.
    pub sample_ratio: Option<Ratio>,
}

/// Configuration of the export: signals, destinations and limits.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TelemetryConfig {
    /// Name and version of the program.
    pub service: Service,
    /// Destination of spans. If `None`, no spans are exported.
    pub traces: Option<Destination>,
    /// Destination of metrics. If `None`, no metrics are exported.
    pub metrics: Option<Destination>,
    /// Decides which traces are recorded.
    pub sampler: Sampler,
    /// Resource attributes. They replace attributes of the same name that the crate sets itself.
    pub resource: Vec<(String, String)>,
    /// Maximum number of spans in the queue; spans over it are dropped and counted.
    pub max_queued_spans: usize,
    /// Maximum number of spans in one request.
    pub max_batch_spans: usize,
    /// Longest time that a span waits for a batch to fill.
    pub batch_delay: Duration,
    /// Time in which attempts to send a batch may start. A batch is dropped if its next attempt
    /// would start later.
    pub export_timeout: Duration,
    /// Time between two exports of metrics.
    pub metrics_interval: Duration,
    /// Warnings for people about ignored values of variables. `Exporters::new` returns them, too.
    pub warnings: Vec<String>,
}

impl TelemetryConfig {
    /// Returns a configuration that exports nothing until [`traces`](Self::traces) or
    /// [`metrics`](Self::metrics) is set. Limits have the defaults of OpenTelemetry's
    /// specification.
    #[must_use]
    pub fn new(service: Service) -> Self {
        Self::from_variables(service, &Overrides::default(), |_| None)
    }

    /// Reads the `OTEL_*` variables of the process.
    ///
    /// A signal is exported only if a variable names an endpoint for it. As OpenTelemetry's
    /// specification demands, an invalid value causes a warning and counts as not set.
    #[must_use]
    pub fn from_env(service: Service) -> Self {
        Self::from_variables(service, &Overrides::default(), |name| std::env::var(name).ok())
    }
}

/// Collector that one signal (traces or metrics) is sent to, and how to send it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Destination {
    /// The complete URL for OTLP/HTTP (`…/v1/traces`), or the collector's origin for gRPC.
    pub url: HttpUrl,
    /// Transport and encoding.
    pub protocol: Protocol,
    /// Headers of each request. Their values may be secrets.
    pub headers: Headers,
    /// Timeout of one attempt.
    pub timeout: Duration,
    /// `true` compresses requests with gzip.
    pub is_compressed: bool,
    /// PEM file with the CAs to trust instead of the system's.
    pub certificate: Option<PathBuf>,
    /// PEM files with the client certificate and its key, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Destination {
    /// Returns a destination with a timeout of 10 s for each attempt, without compression.
    #[must_use]
    pub const fn new(url: HttpUrl, protocol: Protocol) -> Self {
        Self {
            url,
            protocol,
            headers: Headers(Vec::new()),
            timeout: Self::DEFAULT_TIMEOUT,
            is_compressed: false,
            certificate: None,
            identity: None,
        }
    }

    pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
}

/// Names and values of headers. `Debug` shows the names only.
#[derive(Clone, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Transport and encoding of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// OTLP/gRPC, by convention on port 4317.
    Grpc,
    /// OTLP/HTTP with binary protobuf, by convention on port 4318.
    HttpProtobuf,
}
