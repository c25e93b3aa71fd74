//! Spans and metrics over OTLP.

use clap::Args;
use deeperhub_args::{HttpUrl, Ratio, Switchable, whole};

/// Options under the heading "Telemetry".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Telemetry")]
pub(crate) struct TelemetryOptions {
    /// Collector that spans and metrics go to by OTLP, or `off` [default: off]
    ///
    /// The URL of its gRPC port (4317) or of its HTTP port. `OTEL_EXPORTER_OTLP_ENDPOINT` and the other `OTEL_…`
    /// variables of OpenTelemetry are honoured too, below this setting.
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_endpoint: Option<Switchable<HttpUrl>>,

    /// Part of the traces that begin here which is recorded, from 0 to 1 [default: 1]
    ///
    /// Traces that backends bring are recorded if they are sampled there, those that clients bring
    /// up to --trace-client-rate.
    #[arg(long, value_name = "RATIO")]
    pub(crate) trace_sample_ratio: Option<Ratio>,

    /// Messages and handshakes a second that are recorded because a client says that its trace is
    /// sampled [default: 10]
    ///
    /// Of all clients of the node together. What is over it, all with 0, is recorded with the ratio
    /// of traces that begin here (--trace-sample-ratio).
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000))]
    pub(crate) trace_client_rate: Option<u32>,
}
