//! Settings that are read again while the server runs: what can change takes effect, and what cannot is told.

use std::error::Error;
use std::sync::Arc;

use clap::ArgMatches;
use deeperhub_api::SharedApiConfig;
use deeperhub_node::NodeHandle;
use deeperhub_security::Secret;
use tracing::field::display;
use tracing::{info, warn};

use crate::config::effective::{EffectiveSetting, Settings};
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::config::resolve::resolve;
use crate::log::Level;
use crate::process::nofile;

/// The settings that take effect without a restart.
pub(crate) const RELOADABLE_KEYS: &[&str] = &[
    "api_key",
    "max_batch_calls",
    "max_batch_bytes",
    "idempotency_ttl",
    "max_idempotency_keys",
    "max_idempotency_bytes",
    "max_connections",
    "max_connections_per_ip",
    "max_message_bytes",
    "max_fragments",
    "max_json_depth",
    "max_subscriptions",
    "max_queue_bytes",
    "round_bytes",
    "round_time",
    "rate_limit",
    "rate_burst",
    "byte_rate_limit",
    "byte_rate_burst",
    "control_rate_limit",
    "token_rate_limit",
    "max_handshake_bytes",
    "max_handshake_headers",
    "allowed_origin",
    "log_level",
];

/// What a server runs with, and what takes another configuration.
pub(crate) struct SettingsReload {
    /// As typed when the program was started.
    pub(crate) flags: Vec<ArgMatches>,
    /// What is in effect.
    pub(crate) running: Vec<EffectiveSetting>,
    pub(crate) api_key: Option<Arc<Secret>>,
    pub(crate) node: NodeHandle,
    pub(crate) api: Option<SharedApiConfig>,
    pub(crate) level: Level,
}

/// Why settings were not read again.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
struct ConfigErrors(Vec<ConfigError>);

impl SettingsReload {
    /// Reads file and environment again and puts what can change in place.
    ///
    /// # Errors
    ///
    /// Something is wrong with the settings: nothing has changed.
    pub(crate) fn reload(&mut self) -> Result<(), Box<dyn Error>> {
        let settings =
            Layers::read(self.flags.iter(), std::env::vars_os()).and_then(resolve).map_err(ConfigErrors)?;
        for warning in &settings.warnings {
            warn!("{warning}");
        }
        self.apply(&settings);
        self.tell(settings);
        Ok(())
    }

    fn apply(&self, settings: &Settings) {
        let listener = &settings.node.listener;
        if let Err(sentence) =
            nofile::raise(listener.max_connections, listener.workers, settings.api_connections())
        {
            warn!("{sentence}");
        }
        self.node.reconfigure(&settings.node);
        if let (Some(shared), Some(api)) = (&self.api, &settings.api) {
            let mut config = api.config.clone();
            config.websocket_url.clone_from(&shared.current().websocket_url);
            shared.replace(config);
        }
        self.level.set(settings.log.level);
    }

    /// Says what changed, and what would have but cannot.
    fn tell(&mut self, settings: Settings) {
        let api_key = settings.api.and_then(|api| api.config.api_key);
        let key_changed =
            self.api_key.as_ref().map(|key| key.expose()) != api_key.as_ref().map(|key| key.expose());
        for (running, read) in self.running.iter_mut().zip(settings.effective) {
            let key = read.key;
            // A secret shows as the same text whatever it is.
            let changed = if key == "api_key" { key_changed } else { running.toml != read.toml };
            if !changed {
                continue;
            }
            let effective = |toml: Option<&'_ str>| toml.map(|text| display(text.to_owned()));
            let (from, to) = (effective(running.toml.as_deref()), effective(read.toml.as_deref()));
            if RELOADABLE_KEYS.contains(&key) && (self.api.is_some() || key != "api_key") {
                info!(setting = key, from, to, "A setting has changed.");
                *running = read;
            } else {
                warn!(
                    setting = key,
                    from, to, "A setting has changed that takes effect at the next start only."
                );
            }
        }
        if self.api.is_some() {
            self.api_key = api_key;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::Options;

    #[test]
    fn what_is_live_is_a_setting() {
        let keys = Options::keys();
        for live in RELOADABLE_KEYS {
            assert!(keys.iter().any(|key| key == live), "{live}");
        }
    }
}
