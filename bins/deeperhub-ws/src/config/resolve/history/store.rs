//! Resolves the options of the history on disk.

use std::path::PathBuf;

use deeperhub_args::{Size, Time};
use deeperhub_node::history::{Acknowledge, Rule};
use deeperhub_node::{Config, HistoryStore};

use crate::config::effective::OnReload;
use crate::config::options::{RULE_KEY, flag, variable};
use crate::config::origin::SettingOrigin;
use crate::config::resolve::Resolver;
use crate::config::values::{HistorySync, StoreKind};

/// Default of `history_sync`.
const DEFAULT_SYNC: HistorySync = HistorySync::Within(Time(std::time::Duration::from_millis(100)));

/// Minimum of `history_disk_bytes`: some of the smallest files.
const MIN_DISK_BYTES: u64 = 1 << 20;

/// Options of the store.
pub(super) struct StoreOptions {
    pub(super) history_store: Option<StoreKind>,
    pub(super) history_dir: Option<PathBuf>,
    pub(super) history_sync: Option<HistorySync>,
    pub(super) history_disk_bytes: Option<Size>,
}

/// Resolves the store, and returns where the history is kept.
pub(super) fn resolve(
    resolver: &mut Resolver,
    options: StoreOptions,
    has_cluster: bool,
    node: &mut Config,
) -> StoreKind {
    let StoreOptions { history_store, history_dir, history_sync, history_disk_bytes } = options;
    let default = if has_cluster { StoreKind::Cluster } else { StoreKind::Memory };
    let kind = take!(resolver, fixed history_store, default);
    let folder = take!(resolver, fixed history_dir);
    let sync = take!(resolver, fixed history_sync, DEFAULT_SYNC);
    let max_bytes = take!(resolver, fixed history_disk_bytes);
    if let Some(max_bytes) = &max_bytes {
        resolver.require(
            "history_disk_bytes",
            max_bytes,
            max_bytes.0 >= MIN_DISK_BYTES,
            "expected at least 1MiB",
        );
    }
    match kind {
        StoreKind::Memory => warn_of_unused(resolver),
        StoreKind::Cluster => {
            warn_of_unused(resolver);
            if !has_cluster {
                resolver.conflict(format!(
                    "{} is cluster and there is no cluster; expected a broker in {}, {} or cluster as well",
                    resolver.name_of("history_store"),
                    flag("cluster"),
                    variable("cluster"),
                ));
            }
        }
        StoreKind::Disk => match folder {
            Some(folder) => node.history_store = on_disk(resolver, folder, sync, max_bytes),
            None => resolver.conflict(format!(
                "{} is disk and there is no folder; expected one in {}, {} or history_dir as well",
                resolver.name_of("history_store"),
                flag("history_dir"),
                variable("history_dir"),
            )),
        },
    }
    kind
}

#[cfg(feature = "disk")]
fn on_disk(_: &mut Resolver, folder: PathBuf, sync: HistorySync, max_bytes: Option<Size>) -> HistoryStore {
    let mut disk = deeperhub_node::DiskConfig::new(folder);
    disk.sync_interval = match sync {
        HistorySync::Always => None,
        HistorySync::Within(time) => Some(time.0),
    };
    disk.max_bytes = max_bytes.map(|size| size.0);
    HistoryStore::Disk(disk)
}

#[cfg(not(feature = "disk"))]
fn on_disk(resolver: &mut Resolver, _: PathBuf, _: HistorySync, _: Option<Size>) -> HistoryStore {
    resolver.conflict(format!(
        "{} is disk, and this program was built without the feature `disk`; use memory or another build",
        resolver.name_of("history_store"),
    ));
    HistoryStore::Memory
}

/// Warns of settings that only a store on disk uses.
fn warn_of_unused(resolver: &mut Resolver) {
    for key in ["history_dir", "history_sync", "history_disk_bytes"] {
        if resolver.origin(key) != SettingOrigin::Default {
            let (name, store) = (resolver.name_of(key), flag("history_store"));
            resolver.warnings.push(format!("{name} has no effect without {store} disk"));
        }
    }
}

/// Reports an error for each rule that waits for the disk if there is none.
pub(super) fn refuse_without_disk(
    resolver: &mut Resolver,
    kind: StoreKind,
    rules: &[Rule],
    origins: &[SettingOrigin],
) {
    // `refuse_in_cluster` has another advice.
    if kind != StoreKind::Memory {
        return;
    }
    for (rule, origin) in rules.iter().zip(origins) {
        if rule.policy().acknowledge() == Acknowledge::Disk {
            resolver.conflict(format!(
                "the rule `{rule}` ({}) has ack=disk, and the history is not on a disk; use ack=memory, or \
                 set {} to disk",
                origin.label(RULE_KEY),
                flag("history_store"),
            ));
        }
    }
}
