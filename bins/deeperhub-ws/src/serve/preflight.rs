//! Checks before a start: resolves addresses and sets up exporters.

use std::net::SocketAddr;

use deeperhub_args::{Address, Host};
use deeperhub_listener::ListenOn;
use deeperhub_telemetry::{Overrides, Service, TelemetryConfig};

use super::error::ServeError;
use crate::cli::{NAME, VERSION};
use crate::config::effective::Settings;

/// Resolved addresses and exporters, which are needed before clients connect. Setting them up may
/// block.
pub(super) struct Preflight {
    pub(super) clients: ListenOn,
    pub(super) api: Option<SocketAddr>,
    pub(super) telemetry: deeperhub_telemetry::Exporters,
    pub(super) warnings: Vec<String>,
}

impl Preflight {
    pub(super) fn new(
        address: &Address,
        api: Option<&Address>,
        config: TelemetryConfig,
    ) -> Result<Self, ServeError> {
        let clients = match listen_on(address) {
            Some(known) => known,
            None => lookup(address)?.into(),
        };
        let api = api.map(lookup).transpose()?;
        let (telemetry, warnings) = deeperhub_telemetry::Exporters::new(config);
        Ok(Self { clients, api, telemetry, warnings })
    }
}

/// Returns the telemetry configuration from settings and OpenTelemetry's variables.
pub(super) fn telemetry_settings(settings: &Settings) -> TelemetryConfig {
    let settings = &settings.telemetry;
    let service = Service::new(NAME, VERSION);
    let overrides =
        Overrides { endpoint: settings.otlp_endpoint.clone(), sample_ratio: settings.trace_sample_ratio };
    TelemetryConfig::from_variables(service, &overrides, |name| std::env::var(name).ok())
}

/// Resolves host names and reads exporter files as a start does, without listening. Returns the
/// warnings.
///
/// # Errors
///
/// If the server would not start.
pub(crate) fn preflight(settings: &Settings) -> Result<Vec<String>, ServeError> {
    let api = settings.api.as_ref().map(|api| &api.address);
    Ok(Preflight::new(&settings.address, api, telemetry_settings(settings))?.warnings)
}

fn lookup(address: &Address) -> Result<SocketAddr, ServeError> {
    address.resolve().map_err(|source| ServeError::Lookup { address: address.clone(), source })
}

/// Returns the addresses to listen on, or `None` if the name needs a look-up.
fn listen_on(address: &Address) -> Option<ListenOn> {
    match &address.host {
        Host::Ip(ip) => Some(SocketAddr::new(*ip, address.port).into()),
        Host::Name(_) if address.host.is_loopback() => Some(ListenOn::Loopback { port: address.port }),
        Host::Name(_) => None,
    }
}
