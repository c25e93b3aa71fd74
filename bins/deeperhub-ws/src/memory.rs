//! How much memory this process may have: what was set, or what the system grants.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deeperhub_listener::MemoryBudget;
use tokio::time::MissedTickBehavior;

/// Time between two looks at the memory in use: at 10 Gbit/s 125 MB may come in between, a tenth of a gigabyte of slack
/// being what the budget's last tenth is for.
const INTERVAL: Duration = Duration::from_millis(100);

/// Where control groups are mounted (cgroups(7)).
const CGROUPS: &str = "/sys/fs/cgroup";

/// What the system grants: the smallest limit of the control groups that this process is in, or the machine's memory.
/// `None`: it does not say.
pub(crate) fn granted() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    limits(&groups, &read).chain(machine).min()
}

/// Tells the budget, if there is one, every now and then what is in use.
pub(crate) async fn watch(budget: Option<Arc<MemoryBudget>>) -> Infallible {
    let Some(budget) = budget else { return std::future::pending().await };
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        if let Some(used) = deeperhub_metrics::resident_bytes() {
            budget.update(used);
        }
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    deeperhub_metrics::kibibytes(meminfo, "MemTotal:")
}

/// The limits that hold for the groups of `/proc/self/cgroup`: of each group and of all above it.
fn limits<'a>(groups: &'a str, read: &'a dyn Fn(&Path) -> Option<String>) -> impl Iterator<Item = u64> + 'a {
    groups.lines().flat_map(move |line| {
        // `0::/path` in version 2, `4:memory:/path` in version 1.
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) =
            (fields.next(), fields.next().unwrap_or_default(), fields.next().unwrap_or("/"));
        let (root, file) = if controllers.is_empty() {
            (PathBuf::from(CGROUPS), "memory.max")
        } else {
            (Path::new(CGROUPS).join("memory"), "memory.limit_in_bytes")
        };
        let concerns_memory = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
        let group = root.join(path.trim_start_matches('/'));
        let groups: Vec<PathBuf> = group
            .ancestors()
            .take_while(|group| group.starts_with(&root))
            .map(|group| group.join(file))
            .collect();
        // In a container the group's own path may not be visible; its mount then is the group itself, the last one.
        groups.into_iter().filter(move |_| concerns_memory).filter_map(move |path| limit(&read(&path)?))
    })
}

/// A limit as the kernel writes it. `None`: there is none, for which version 1 has a number too large to be meant.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_all_groups_above_hold() {
        let read = |path: &Path| match path.to_str()? {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/a/memory.max" => Some("1000\n".to_owned()),
            "/sys/fs/cgroup/memory.max" => Some("2000\n".to_owned()),
            "/sys/fs/cgroup/memory/c/memory.limit_in_bytes" => Some("9223372036854771712\n".to_owned()),
            "/sys/fs/cgroup/memory/memory.limit_in_bytes" => Some("3000\n".to_owned()),
            other => panic!("{other} is no limit of memory"),
        };
        let found = |groups: &str| limits(groups, &read).collect::<Vec<_>>();
        assert_eq!(found("0::/a/b\n"), [1000, 2000]);
        assert_eq!(found("5:cpu,cpuacct:/x\n4:memory:/c\n"), [3000]);
        assert_eq!(found("0::/\n"), [2000]);
        assert_eq!(found(""), [0; 0]);
    }

    #[test]
    fn a_group_that_cannot_be_seen_has_the_limit_of_its_mount() {
        let read = |path: &Path| (path == Path::new("/sys/fs/cgroup/memory.max")).then(|| "512".to_owned());
        assert_eq!(limits("0::/kubepods/pod1/c1\n", &read).collect::<Vec<_>>(), [512]);
    }

    #[test]
    fn this_process_has_memory_and_uses_some() {
        let (granted, used) = (granted().unwrap(), deeperhub_metrics::resident_bytes().unwrap());
        assert!(0 < used && used < granted, "{used} of {granted}");
    }
}
