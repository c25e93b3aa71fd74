//! Reloads settings. Applies the changed ones that need no restart, and logs all changes.

use std::error::Error;

use clap::ArgMatches;
use deeperhub_api::SharedApiConfig;
use deeperhub_node::NodeHandle;
use deeperhub_node::history::{Acknowledge, Rule};
use tracing::field::display;
use tracing::{info, warn};

use crate::config::effective::{ApiSettings, EffectiveSetting, LogSettings, OnReload, Settings};
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::config::resolve::resolve;
use crate::log::Level;
use crate::process::nofile;

/// The settings in effect, and handles to the parts that settings are applied to.
pub(crate) struct SettingsReload {
    /// Flags of the command line, which override the file on each reload.
    pub(crate) flags: Vec<ArgMatches>,
    /// Settings in effect.
    pub(crate) running: Vec<EffectiveSetting>,
    pub(crate) node: NodeHandle,
    pub(crate) api: Option<SharedApiConfig>,
    pub(crate) level: Level,
    /// `true` if the node started with a history on disk.
    pub(crate) has_store: bool,
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
        let waits_for_disk = |(_, rule): (_, &Rule)| rule.policy().acknowledge() == Acknowledge::Disk;
        if !self.has_store && settings.node.history.rules.iter().any(waits_for_disk) {
            let conflict = "a rule has ack=disk, and this node started without a history on disk; \
                            restart it with --history-store disk, or use ack=memory";
            return Err(ConfigErrors(vec![ConfigError::Conflict(conflict.to_owned())]).into());
        }
        for warning in &settings.warnings {
            warn!("{warning}");
        }
        nofile::raise_for(&settings);
        let effective = self.apply(settings);
        log_changes(&mut self.running, effective);
        Ok(())
    }

    /// Hands the limits to the running server. Each part of the settings is named here, so that the
    /// compiler reports a new part that is neither applied nor fixed at the start.
    fn apply(&self, settings: Settings) -> Vec<EffectiveSetting> {
        let Settings {
            node,
            api,
            log: LogSettings { level, format: _, queue_bytes: _ },
            effective,
            address: _,
            auth: _,
            tls: _,
            drain_timeout: _,
            telemetry: _,
            config: _,
            rule_origins: _,
            warnings: _,
        } = settings;
        self.node.set_limits(node.limits());
        if let (Some(running), Some(ApiSettings { config, address: _, tls: _ })) = (&self.api, api) {
            running.set_limits(config.limits);
        }
        self.level.set(level);
        effective
    }
}

/// Logs each changed setting, and whether it needs a restart. Updates those that do not.
fn log_changes(running: &mut [EffectiveSetting], effective: Vec<EffectiveSetting>) {
    for (running, new) in running.iter_mut().zip(effective) {
        if new.has_value_of(running) {
            continue;
        }
        let (from, to) = (running.toml.clone().map(display), new.toml.clone().map(display));
        // The server API applies its settings only if it is on, before and after the change.
        if [running.on_reload, new.on_reload] == [OnReload::Applied; 2] {
            info!(setting = new.key, from, to, "Setting changed");
            *running = new;
        } else {
            warn!(setting = new.key, from, to, "Setting changed; restart required");
        }
    }
}
