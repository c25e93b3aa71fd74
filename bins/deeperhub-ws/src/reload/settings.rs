//! Reloads settings. Applies the changed ones that need no restart, and logs all changes.

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

/// Settings that take effect without a restart.
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

/// The settings in effect, and handles to the parts that settings are applied to.
pub(crate) struct SettingsReload {
    /// Flags of the command line, which override the file on each reload.
    pub(crate) flags: Vec<ArgMatches>,
    /// Settings in effect.
    pub(crate) running: Vec<EffectiveSetting>,
    /// API key in effect; `running` shows it masked.
    pub(crate) api_key: Option<Arc<Secret>>,
    pub(crate) node: NodeHandle,
    pub(crate) api: Option<SharedApiConfig>,
    pub(crate) level: Level,
}

/// All errors of a reload, as one.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
struct ConfigErrors(Vec<ConfigError>);

impl SettingsReload {
    /// Reads file and environment, applies the settings that need no restart, and logs the changes.
    ///
    /// # Errors
    ///
    /// If the settings are invalid. The previous ones then stay in effect.
    pub(crate) fn reload(&mut self) -> Result<(), Box<dyn Error>> {
        let settings =
            Layers::read(self.flags.iter(), std::env::vars_os()).and_then(resolve).map_err(ConfigErrors)?;
        for warning in &settings.warnings {
            warn!("{warning}");
        }
        self.apply(&settings);
        self.log_changes(settings);
        Ok(())
    }

    fn apply(&self, settings: &Settings) {
        nofile::raise_for(settings);
        self.node.reconfigure(&settings.node);
        if let (Some(shared), Some(api)) = (&self.api, &settings.api) {
            let mut config = api.config.clone();
            let running = shared.current();
            // These two depend on the bound address and on the TLS files, which reload on their
            // own.
            config.websocket_url.clone_from(&running.websocket_url);
            config.tls.clone_from(&running.tls);
            shared.replace(config);
        }
        self.level.set(settings.log.level);
    }

    /// Logs each changed setting, and whether it needs a restart.
    fn log_changes(&mut self, settings: Settings) {
        let api_key = settings.api.and_then(|api| api.config.api_key);
        let key_changed =
            self.api_key.as_ref().map(|key| key.expose()) != api_key.as_ref().map(|key| key.expose());
        for (running, new) in self.running.iter_mut().zip(settings.effective) {
            let key = new.key;
            // The text of the API key is masked, so it does not show that the key was replaced.
            let is_changed = if key == "api_key" { key_changed } else { running.toml != new.toml };
            if !is_changed {
                continue;
            }
            let (from, to) = (running.toml.clone().map(display), new.toml.clone().map(display));
            if RELOADABLE_KEYS.contains(&key) && (self.api.is_some() || key != "api_key") {
                info!(setting = key, from, to, "Setting changed");
                *running = new;
            } else {
                warn!(setting = key, from, to, "Setting changed; restart required");
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
    fn reloadable_keys_are_settings() {
        let keys = Options::keys();
        for reloadable in RELOADABLE_KEYS {
            assert!(keys.iter().any(|key| key == reloadable), "{reloadable}");
        }
    }
}
