//! Spans and metrics over OTLP.

use clap::Args;
use deeperhub_args::{HttpUrl, Ratio, Switchable, whole};

/// Options under the heading "Telemetry".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Telemetry")]
pub(crate) struct TelemetryOptions {
    /// Export spans and metrics over OTLP to the collector at this URL; `off` disables it
    ///
    /// The URL of its gRPC port (4317) or of its HTTP port. The variable
    /// OTEL_EXPORTER_OTLP_ENDPOINT and the other OTEL_ variables of OpenTelemetry are honoured too,
    /// below this setting.
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_endpoint: Option<Switchable<HttpUrl>>,

    /// Sample this share of the traces that start here, from 0 to 1
    ///
    /// Traces of backends are recorded if they are sampled there, traces of clients up to
    /// --trace-client-rate.
    #[arg(long, value_name = "RATIO")]
    pub(crate) trace_sample_ratio: Option<Ratio>,

    /// Record this many messages and handshakes per second because a client's trace is sampled
    ///
    /// Applies to all clients of the node together. Further ones, all with 0, are sampled with
    /// --trace-sample-ratio.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) trace_client_rate: Option<u32>,
}
