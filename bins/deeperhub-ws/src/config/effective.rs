//! The settings that a server runs with, and how `config show` writes them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use deeperhub_args::{Address, HttpUrl, Ratio, Switchable};
use deeperhub_security::Secret;

use crate::config::origin::SettingOrigin;
use crate::config::values::{LogFormat, LogLevel, ToToml};
use crate::reload::keys::Auth;
use crate::reload::tls::Tls;

/// Defaults of settings that no library crate has a default for.
pub(crate) mod defaults {
    use std::time::Duration;

    use deeperhub_args::{Address, Host};

    pub(crate) const PORT: u16 = 8080;
    pub(crate) const API_ADDRESS: Address = Address { host: Host::LOOPBACK, port: 8081 };
    pub(crate) const BYTE_RATE_BURST: u32 = 1 << 20;
    pub(crate) const CLUSTER_PREFIX: &str = "deeperhub";
    pub(crate) const CLUSTER_QUEUE_BYTES: usize = 16 << 20;
    pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
    pub(crate) const LOG_QUEUE_BYTES: usize = 1 << 20;
    /// Limits the cost of traces that clients request. Enough to trace a few clients under
    /// investigation; a message costs up to about twenty spans.
    pub(crate) const TRACE_CLIENT_RATE: u32 = 10;
}

/// Valid settings. Only `resolve` creates them.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Address that clients connect to.
    pub(crate) address: Address,
    /// Configuration of the node.
    pub(crate) node: deeperhub_node::Config,
    /// Keys that verify tokens; `None` if none are set. `node` has the same authenticator.
    pub(crate) auth: Option<Auth>,
    /// TLS of the client port; `None` if it is off.
    pub(crate) tls: Option<Tls>,
    /// The server API; `None` if it is off.
    pub(crate) api: Option<ApiSettings>,
    /// Time over which connections are closed at shutdown.
    pub(crate) drain_timeout: Duration,
    pub(crate) log: LogSettings,
    pub(crate) telemetry: TelemetrySettings,
    /// The file that was read, and the origin of its path.
    pub(crate) config: Option<(PathBuf, SettingOrigin)>,
    /// Origins of the rules for topics, which are `node.history.rules`, in the same order.
    pub(crate) rule_origins: Vec<SettingOrigin>,
    /// Every setting as text, in the order of the options.
    pub(crate) effective: Vec<EffectiveSetting>,
    /// Warnings about valid settings that are probably mistakes.
    pub(crate) warnings: Vec<String>,
}

/// Settings of the server API.
#[derive(Debug)]
pub(crate) struct ApiSettings {
    /// Address to listen on.
    pub(crate) address: Address,
    /// TLS of the API; `None` if it is off.
    pub(crate) tls: Option<Tls>,
    /// Configuration of the API. It has a key, unless the address is loopback.
    pub(crate) config: deeperhub_api::ApiConfig,
}

/// Settings of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSettings {
    pub(crate) level: LogLevel,
    pub(crate) format: LogFormat,
    /// Maximum bytes of queued lines.
    pub(crate) queue_bytes: usize,
}

/// Settings of the export over OTLP.
#[derive(Debug)]
pub(crate) struct TelemetrySettings {
    /// The collector. If `None`, OpenTelemetry's variables decide.
    pub(crate) otlp_endpoint: Option<Switchable<HttpUrl>>,
    /// Sampled share of new traces. If `None`, OpenTelemetry's variables decide.
    pub(crate) trace_sample_ratio: Option<Ratio>,
    /// Messages and handshakes per second that are traced because clients request it.
    pub(crate) trace_client_rate: u32,
}

/// One setting as `config show` writes it.
#[derive(Debug, Clone)]
pub(crate) struct EffectiveSetting {
    pub(crate) key: &'static str,
    /// The value as TOML, with secrets masked; `None` if the setting has no value.
    pub(crate) toml: Option<String>,
    /// The text that `toml` masks, if any.
    secret: Option<Secret>,
    /// Origin of the value, or of its first item.
    pub(crate) origin: SettingOrigin,
    /// Items of a list whose items have their own origins. Each is TOML.
    items: Vec<(String, SettingOrigin)>,
    pub(crate) on_reload: OnReload,
}

/// A line of `config show`, with the origin that its comment names.
struct Line {
    text: String,
    origin: Option<String>,
}

/// Effect of a new value of a setting on SIGHUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnReload {
    /// The value takes effect: it is a part of what [`SettingsReload`] hands to the running server.
    ///
    /// [`SettingsReload`]: crate::reload::settings::SettingsReload
    Applied,
    /// The value has an effect only after a restart.
    RestartRequired,
}

impl EffectiveSetting {
    /// Records a value; `None` if the setting has no value.
    pub(crate) fn new<T: ToToml>(
        key: &'static str,
        value: Option<&T>,
        origin: SettingOrigin,
        on_reload: OnReload,
    ) -> Self {
        let toml = value.map(ToToml::to_toml);
        let secret = value.and_then(ToToml::secret);
        Self { key, toml, secret, origin, items: Vec::new(), on_reload }
    }

    /// Records a list whose items come from several layers. `origins` are those of the items.
    pub(crate) fn list<T: ToToml>(
        key: &'static str,
        values: &[T],
        origins: &[SettingOrigin],
        on_reload: OnReload,
    ) -> Self {
        let items: Vec<_> = values.iter().map(ToToml::to_toml).zip(origins.iter().cloned()).collect();
        let texts: Vec<_> = items.iter().map(|(toml, _)| toml.as_str()).collect();
        let toml = Some(format!("[{}]", texts.join(", ")));
        let origin = origins.first().cloned().unwrap_or(SettingOrigin::Default);
        Self { key, toml, secret: None, origin, items, on_reload }
    }

    /// Returns `true` if the values are the same, also where they are masked.
    pub(crate) fn has_value_of(&self, other: &Self) -> bool {
        let secrets = [self, other].map(|setting| setting.secret.as_ref().map(Secret::expose));
        self.toml == other.toml && secrets[0] == secrets[1]
    }

    /// Returns the lines that `config show` writes. Items with their own origins get a line each.
    fn lines(&self) -> Vec<Line> {
        let Self { key, toml, origin, items, .. } = self;
        let with_origin =
            |text: String, origin: &SettingOrigin| Line { text, origin: Some(origin.label(key)) };
        let Some(toml) = toml else { return vec![with_origin(format!("# {key} is not set"), origin)] };
        if items.is_empty() {
            return vec![with_origin(format!("{key} = {toml}"), origin)];
        }
        let first = Line { text: format!("{key} = ["), origin: None };
        let items = items.iter().map(|(item, origin)| with_origin(format!("    {item},"), origin));
        let last = Line { text: "]".to_owned(), origin: None };
        std::iter::once(first).chain(items).chain([last]).collect()
    }

    /// Returns `true` if the setting has a secret value.
    #[cfg(test)]
    pub(crate) fn is_secret(&self) -> bool {
        self.secret.is_some()
    }
}

impl Settings {
    /// Returns the scheme of the URLs that clients connect to.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "wss" } else { "ws" }
    }

    /// Returns the maximum number of connections of the server API, reserved ones included.
    pub(crate) fn api_connections(&self) -> usize {
        let reserved = 2 * deeperhub_api::RESERVED_CONNECTIONS;
        self.api.as_ref().map_or(0, |api| api.config.max_connections.saturating_add(reserved))
    }

    /// Writes the effective configuration as TOML, with the origin of each value in a comment.
    /// Writes a setting without a value as a comment, and masks secrets.
    pub(crate) fn show(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            if let Some((path, origin)) = &self.config {
                writeln!(f, "# File {} (from {origin}).", path.display())?;
            }
            let lines: Vec<_> = self.effective.iter().flat_map(EffectiveSetting::lines).collect();
            let longest =
                lines.iter().filter_map(|line| Some((line.text.chars().count(), line.origin.as_ref()?)));
            let width = longest.map(|(length, _)| length).max().unwrap_or(0).min(48);
            for Line { text, origin } in lines {
                match origin {
                    Some(origin) => writeln!(f, "{text:width$}  # {origin}")?,
                    None => writeln!(f, "{text}")?,
                }
            }
            Ok(())
        })
    }
}
