//! Resolves the options under "Telemetry".

use super::Resolver;
use crate::config::effective::{OnReload, TelemetrySettings, defaults};
use crate::config::options::TelemetryOptions;

/// Returns the settings of the export over OTLP.
pub(super) fn resolve(resolver: &mut Resolver, options: TelemetryOptions) -> TelemetrySettings {
    let TelemetryOptions { otlp_endpoint, trace_sample_ratio, trace_client_rate } = options;
    TelemetrySettings {
        otlp_endpoint: take!(resolver, fixed otlp_endpoint),
        trace_sample_ratio: take!(resolver, fixed trace_sample_ratio),
        trace_client_rate: take!(resolver, fixed trace_client_rate, defaults::TRACE_CLIENT_RATE),
    }
}
