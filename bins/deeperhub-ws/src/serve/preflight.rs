//! The preflight: the work of a start that may block or fail before anything is bound. It resolves
//! addresses and creates exporters.

use std::net::SocketAddr;

use deeperhub_args::{Address, Host};
use deeperhub_listener::ListenOn;
use deeperhub_telemetry::{Overrides, Service, TelemetryConfig};

use super::error::ServeError;
use crate::cli::{NAME, VERSION};
use crate::config::effective::{Settings, TelemetrySettings};

/// Work of a start that may block and must be done before clients connect. Owns its input, so that
/// it can run on another thread.
pub(super) struct Preflight {
    client_address: Address,
    api_address: Option<Address>,
    telemetry: TelemetryConfig,
}

/// Results of a preflight.
pub(super) struct Prepared {
    /// Addresses for clients.
    pub(super) listen_on: ListenOn,
    pub(super) api_address: Option<SocketAddr>,
    pub(super) exporters: deeperhub_telemetry::Exporters,
    pub(super) warnings: Vec<String>,
}

impl Preflight {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            client_address: settings.address.clone(),
            api_address: settings.api.as_ref().map(|api| api.address.clone()),
            telemetry: telemetry_config(&settings.telemetry),
        }
    }

    /// Resolves the host names and creates the exporters, which read their certificate files. May
    /// block.
    pub(super) fn run(self) -> Result<Prepared, ServeError> {
        let listen_on = match listen_on(&self.client_address) {
            Some(listen_on) => listen_on,
            None => lookup(&self.client_address)?.into(),
        };
        let api_address = self.api_address.as_ref().map(lookup).transpose()?;
        let (exporters, warnings) = deeperhub_telemetry::Exporters::new(self.telemetry);
        Ok(Prepared { listen_on, api_address, exporters, warnings })
    }
}

/// Returns the telemetry configuration from settings and OpenTelemetry's variables.
fn telemetry_config(settings: &TelemetrySettings) -> TelemetryConfig {
    let service = Service::new(NAME, VERSION);
    let overrides =
        Overrides { endpoint: settings.otlp_endpoint.clone(), sample_ratio: settings.trace_sample_ratio };
    TelemetryConfig::from_variables(service, &overrides, |name| std::env::var(name).ok())
}

/// Runs the preflight of a start without starting a server. Returns the warnings.
///
/// # Errors
///
/// If a start would fail.
pub(crate) fn preflight(settings: &Settings) -> Result<Vec<String>, ServeError> {
    Ok(Preflight::new(settings).run()?.warnings)
}

fn lookup(address: &Address) -> Result<SocketAddr, ServeError> {
    address.resolve().map_err(|source| ServeError::Lookup { address: address.clone(), source })
}

/// Returns the addresses to listen on, or `None` if the host is a name that must be looked up.
fn listen_on(address: &Address) -> Option<ListenOn> {
    match &address.host {
        Host::Ip(ip) => Some(SocketAddr::new(*ip, address.port).into()),
        Host::Name(_) if address.host.is_loopback() => Some(ListenOn::Loopback { port: address.port }),
        Host::Name(_) => None,
    }
}
