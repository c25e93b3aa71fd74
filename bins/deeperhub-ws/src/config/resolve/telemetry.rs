//! Resolves the options under "Telemetry".

use super::Resolver;
use crate::config::effective::{TelemetrySettings, defaults};
use crate::config::options::TelemetryOptions;

/// Returns the settings of the export over OTLP.
pub(super) fn resolve(resolver: &mut Resolver, options: TelemetryOptions) -> TelemetrySettings {
    let TelemetryOptions { otlp_endpoint, trace_sample_ratio, trace_client_rate } = options;
    TelemetrySettings {
        otlp_endpoint: take!(resolver, otlp_endpoint),
        trace_sample_ratio: take!(resolver, trace_sample_ratio),
        trace_client_rate: take!(resolver, trace_client_rate, defaults::TRACE_CLIENT_RATE),
    }
}
