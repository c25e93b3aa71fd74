//! Resolves the options under "General".

use std::path::PathBuf;
use std::time::Duration;

use deeperhub_args::Time;
use deeperhub_node::Config;

use super::Resolver;
use crate::config::effective::{OnReload, defaults};
use crate::config::options::GeneralOptions;
use crate::config::origin::SettingOrigin;
use crate::config::values::IoUring;

/// Returns the file that was read, with the origin of its name, and the drain timeout.
pub(super) fn resolve(
    resolver: &mut Resolver,
    options: GeneralOptions,
    node: &mut Config,
) -> (Option<(PathBuf, SettingOrigin)>, Duration) {
    let GeneralOptions { config, workers, io_uring, node_id, drain_timeout, restart_time } = options;
    let config = config.map(|path| (path, resolver.origin("config")));
    let listener = &mut node.listener;
    listener.workers = take!(resolver, fixed workers, listener.workers);
    listener.io_uring = take!(resolver, fixed io_uring, IoUring::Auto) == IoUring::Auto;
    node.node_id = take!(resolver, fixed node_id).map(|id| id.0);
    let drain_timeout = take!(resolver, fixed drain_timeout, Time(defaults::DRAIN_TIMEOUT)).0;
    listener.restart_time = take!(resolver, fixed restart_time, Time(listener.restart_time)).0;
    (config, drain_timeout)
}
