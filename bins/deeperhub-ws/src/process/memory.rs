//! Reads the memory limit that the system sets for this process, and measures the memory in use.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deeperhub_listener::MemoryBudget;
use tokio::time::MissedTickBehavior;

/// Interval between two measurements of the memory in use. At 10 Gbit/s, up to 125 MB arrive in one
/// interval.
const MEASUREMENT_INTERVAL: Duration = Duration::from_millis(100);

/// Mount point of control groups (cgroups(7)).
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Returns the smallest of the machine's memory and the limits of this process's control groups.
/// Returns `None` if none of them is known.
pub(crate) fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| mem_total(&text));
    limited_groups(&groups, &read).map(|(_, limit)| limit).chain(machine).min()
}

/// Measures the memory in use at an interval and reports it to the budget. Waits forever if there
/// is no budget.
pub(crate) async fn watch(budget: Option<Arc<MemoryBudget>>) -> Infallible {
    let Some(budget) = budget else { return std::future::pending().await };
    let group = charged_group();
    let mut interval = tokio::time::interval(MEASUREMENT_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        // The kernel kills a container when the charge of its group exceeds the limit. Without a
        // limited group, the resident memory decides. The larger of both is reported.
        let charged = group.as_ref().and_then(|group| group.charged(&read));
        if let Some(used) = deeperhub_metrics::resident_bytes().max(charged) {
            budget.update(used);
        }
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Returns the control group with the smallest limit, if that limit is below the machine's memory.
/// The kernel kills processes of the group when its charge exceeds the limit.
fn charged_group() -> Option<Cgroup> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| mem_total(&text)).unwrap_or(u64::MAX);
    smallest_group(&groups, machine, &read)
}

fn smallest_group(groups: &str, machine: u64, read: &dyn Fn(&Path) -> Option<String>) -> Option<Cgroup> {
    limited_groups(groups, read)
        .filter(|&(_, limit)| limit < machine)
        .min_by_key(|&(_, limit)| limit)
        .map(|(group, _)| group)
}

/// A control group with a memory controller.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cgroup {
    folder: PathBuf,
    version: CgroupVersion,
}

/// Version of the kernel's control group interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CgroupVersion {
    One,
    Two,
}

impl Cgroup {
    fn limit(&self, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
        limit(&read(&self.folder.join(match self.version {
            CgroupVersion::One => "memory.limit_in_bytes",
            CgroupVersion::Two => "memory.max",
        }))?)
    }

    /// Returns the bytes charged to the group, including socket buffers, without inactive file
    /// pages. The kernel reclaims inactive file pages before it kills a process.
    fn charged(&self, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
        let (usage, inactive) = match self.version {
            CgroupVersion::One => ("memory.usage_in_bytes", "total_inactive_file "),
            CgroupVersion::Two => ("memory.current", "inactive_file "),
        };
        let usage: u64 = read(&self.folder.join(usage))?.trim().parse().ok()?;
        let statistics = read(&self.folder.join("memory.stat")).unwrap_or_default();
        let inactive = statistics.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok());
        Some(usage.saturating_sub(inactive.unwrap_or(0)))
    }
}

/// Returns `MemTotal` of `/proc/meminfo`, in bytes.
fn mem_total(meminfo: &str) -> Option<u64> {
    deeperhub_metrics::parse_kibibytes(meminfo, "MemTotal:")
}

/// Returns the control groups with a memory limit, and their limits. `groups` is the text of
/// `/proc/self/cgroup`; ancestors of its groups count, too.
fn limited_groups<'a>(
    groups: &'a str,
    read: &'a dyn Fn(&Path) -> Option<String>,
) -> impl Iterator<Item = (Cgroup, u64)> + 'a {
    groups.lines().flat_map(move |line| {
        // `0::/path` in version 2, `4:memory:/path` in version 1.
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) =
            (fields.next(), fields.next().unwrap_or_default(), fields.next().unwrap_or("/"));
        let (root, version) = if controllers.is_empty() {
            (PathBuf::from(CGROUP_ROOT), CgroupVersion::Two)
        } else {
            (Path::new(CGROUP_ROOT).join("memory"), CgroupVersion::One)
        };
        let concerns_memory = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
        let group = root.join(path.trim_start_matches('/'));
        let groups: Vec<Cgroup> = group
            .ancestors()
            .take_while(|group| group.starts_with(&root))
            .map(|group| Cgroup { folder: group.to_owned(), version })
            .collect();
        // In a container, the path of the group may not exist. The mount point, an ancestor of the
        // path, is then the group itself.
        groups.into_iter().filter(move |_| concerns_memory).filter_map(move |group| {
            let limit = group.limit(read)?;
            Some((group, limit))
        })
    })
}

/// Parses a limit of the kernel. Returns `None` if there is no limit: version 2 writes `max`, and
/// version 1 a huge number.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_all_ancestors_apply() {
        let read = |path: &Path| match path.to_str()? {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/a/memory.max" => Some("1000\n".to_owned()),
            "/sys/fs/cgroup/memory.max" => Some("2000\n".to_owned()),
            "/sys/fs/cgroup/memory/c/memory.limit_in_bytes" => Some("9223372036854771712\n".to_owned()),
            "/sys/fs/cgroup/memory/memory.limit_in_bytes" => Some("3000\n".to_owned()),
            other => panic!("{other} is no memory limit"),
        };
        let limits = |groups: &str| limited_groups(groups, &read).map(|(_, limit)| limit).collect::<Vec<_>>();
        assert_eq!(limits("0::/a/b\n"), [1000, 2000]);
        assert_eq!(limits("5:cpu,cpuacct:/x\n4:memory:/c\n"), [3000]);
        assert_eq!(limits("0::/\n"), [2000]);
        assert_eq!(limits(""), [0; 0]);
    }

    #[test]
    fn an_invisible_group_has_the_limit_of_its_mount() {
        let read = |path: &Path| (path == Path::new("/sys/fs/cgroup/memory.max")).then(|| "512".to_owned());
        let limits = limited_groups("0::/kubepods/pod1/c1\n", &read).map(|(_, limit)| limit);
        assert_eq!(limits.collect::<Vec<_>>(), [512]);
    }

    #[test]
    fn the_charge_excludes_inactive_file_pages() {
        let read = |path: &Path| {
            let text = match path.to_str()? {
                "/sys/fs/cgroup/a/memory.max" => "4000",
                "/sys/fs/cgroup/a/b/memory.max" => "max",
                "/sys/fs/cgroup/a/memory.current" => "900\n",
                "/sys/fs/cgroup/a/memory.stat" => "anon 500\ninactive_file 300\nsock 100\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "3000",
                "/sys/fs/cgroup/memory/memory.usage_in_bytes" => "700",
                "/sys/fs/cgroup/memory/memory.stat" => "inactive_file 1\ntotal_inactive_file 50\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let charged = |groups: &str, machine| smallest_group(groups, machine, &read)?.charged(&read);
        assert_eq!(charged("0::/a/b\n", 5000), Some(600), "the parent group has the limit");
        assert_eq!(charged("0::/a/b\n", 4000), None, "the limit is not below the machine's memory");
        assert_eq!(charged("4:memory:/x\n", 5000), Some(650));
        assert_eq!(charged("0::/c\n", 5000), None);
    }

    #[test]
    fn this_process_has_memory_and_uses_some() {
        let (memory_limit, used) = (memory_limit().unwrap(), deeperhub_metrics::resident_bytes().unwrap());
        assert!(0 < used && used < memory_limit, "{used} of {memory_limit}");
    }
}
