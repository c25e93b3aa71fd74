//! The settings that a server runs with, and how `config show` writes them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::layers::SettingOrigin;
use crate::config::values::{LogFormat, LogLevel};
use crate::reload::keys::Auth;
use crate::reload::tls::Tls;
use deeperhub_args::{Address, Host, HttpUrl, Ratio, Switchable};

/// Valid by construction: only `resolve` makes them.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where clients connect.
    pub(crate) address: Address,
    /// What the node allows.
    pub(crate) node: deeperhub_node::Config,
    /// Keys for tokens; `None` when there are none. The node's part has the same authenticator.
    pub(crate) auth: Option<Auth>,
    /// TLS towards clients; `None` when it is off.
    pub(crate) tls: Option<Tls>,
    /// The server API; `None` when it is off.
    pub(crate) api: Option<ApiSettings>,
    /// Time over which connections are closed at the end.
    pub(crate) drain_timeout: Duration,
    /// What is logged.
    pub(crate) log_level: LogLevel,
    /// How.
    pub(crate) log_format: LogFormat,
    /// Maximum bytes of log lines that are queued.
    pub(crate) log_queue_bytes: usize,
    /// Where telemetry goes; `None`: where the variables of OpenTelemetry say.
    pub(crate) otlp_endpoint: Option<Switchable<HttpUrl>>,
    /// Which part of new traces is recorded; `None` likewise.
    pub(crate) trace_sample_ratio: Option<Ratio>,
    /// Messages and handshakes per second that are traced because clients request it.
    pub(crate) trace_client_rate: u32,
    /// The file that was read, and who named it.
    pub(crate) config: Option<(PathBuf, SettingOrigin)>,
    /// Every setting as text, in the order of the options.
    pub(crate) effective: Vec<EffectiveSetting>,
    /// What is no error but probably not meant.
    pub(crate) warnings: Vec<String>,
}

/// The server API's part.
#[derive(Debug)]
pub(crate) struct ApiSettings {
    /// Where it listens.
    pub(crate) address: Address,
    /// What it allows; without a key only on loopback.
    pub(crate) config: deeperhub_api::ApiConfig,
}

/// One setting for `config show`.
#[derive(Debug, Clone)]
pub(crate) struct EffectiveSetting {
    pub(crate) key: &'static str,
    /// The value as TOML; `None` when there is none.
    pub(crate) toml: Option<String>,
    pub(crate) origin: SettingOrigin,
}

impl Settings {
    pub(crate) const PORT: u16 = 8080;
    pub(crate) const API_ADDRESS: Address = Address { host: Host::LOOPBACK, port: 8081 };
    pub(crate) const BYTE_RATE_BURST: u32 = 1 << 20;
    pub(crate) const CLUSTER_PREFIX: &str = "deeperhub";
    pub(crate) const CLUSTER_QUEUE_BYTES: usize = 16 << 20;
    pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
    pub(crate) const LOG_QUEUE_BYTES: usize = 1 << 20;
    /// Enough to trace a few clients under investigation. Each message costs up to about twenty
    /// spans.
    pub(crate) const TRACE_CLIENT_RATE: u32 = 10;

    /// How the URLs begin that clients connect to.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "wss" } else { "ws" }
    }

    /// Connections that the server API may have at one time.
    pub(crate) fn api_connections(&self) -> usize {
        let reserved = 2 * deeperhub_api::RESERVED_CONNECTIONS;
        self.api.as_ref().map_or(0, |api| api.config.max_connections.saturating_add(reserved))
    }

    /// The effective configuration as TOML with the origin of each value as a comment. A setting without a value is a
    /// comment altogether; secrets are masked.
    pub(crate) fn show(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            if let Some((path, origin)) = &self.config {
                writeln!(f, "# File {} (from {origin}).", path.display())?;
            }
            let assignments: Vec<_> = self
                .effective
                .iter()
                .map(|EffectiveSetting { key, toml, .. }| match toml {
                    Some(toml) => format!("{key} = {toml}"),
                    None => format!("# {key} is not set"),
                })
                .collect();
            let width =
                assignments.iter().map(|assignment| assignment.chars().count()).max().unwrap_or(0).min(48);
            for (EffectiveSetting { key, origin, .. }, assignment) in self.effective.iter().zip(assignments) {
                writeln!(f, "{assignment:width$}  # {}", origin.of(key))?;
            }
            Ok(())
        })
    }
}
