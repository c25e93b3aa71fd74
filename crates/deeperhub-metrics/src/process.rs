//! Metrics of the process that runs this code, read from `/proc`.

use crate::Unit;
use crate::snapshot::{MetricData, MetricSnapshot, Number};
use std::fs;

/// Names and descriptions of the process's metrics, in the order of [`ProcessReader::read`].
pub(crate) const METRICS: [(&str, &str); 7] = [
    ("process_cpu_seconds_total", "CPU time, user and system"),
    ("process_resident_memory_bytes", "Resident memory"),
    ("process_virtual_memory_bytes", "Virtual memory"),
    ("process_open_fds", "Open file descriptors"),
    ("process_max_fds", "Limit of open file descriptors"),
    ("process_start_time_seconds", "Start time of the process since the Unix epoch"),
    ("process_threads", "Threads"),
];

/// Number of clock ticks in a second, the unit of times in `/proc` (`USER_HZ`). Linux uses 100 on
/// all architectures that Rust's standard library supports, independently of the kernel's own
/// timer.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads the process's metrics from `/proc` for each snapshot.
#[derive(Debug)]
pub(crate) struct ProcessReader {
    /// The start time of the process in seconds since the Unix epoch. It does not change, so it is
    /// read once. `None` if it could not be read.
    start_time: Option<f64>,
}

impl ProcessReader {
    pub(crate) fn new() -> Self {
        let boot_time = read_file("/proc/stat").and_then(|stat| parse_boot_time(&stat));
        let start_time = ProcStat::read().zip(boot_time);
        Self { start_time: start_time.map(|(stat, boot_time)| boot_time + stat.started_after_boot) }
    }

    /// Adds the metrics that can be read.
    pub(crate) fn read(&self, all: &mut Vec<MetricSnapshot<'_>>) {
        let stat = ProcStat::read();
        let max_fds = read_file("/proc/self/limits").and_then(|limits| parse_max_open_files(&limits));
        let values: [Option<Number>; METRICS.len()] = [
            stat.as_ref().map(|stat| stat.cpu_seconds.into()),
            resident_bytes().map(Into::into),
            stat.as_ref().map(|stat| stat.virtual_bytes.into()),
            open_file_count().map(Into::into),
            max_fds.map(Into::into),
            self.start_time.map(Into::into),
            stat.as_ref().map(|stat| stat.threads.into()),
        ];
        for ((name, help), value) in METRICS.into_iter().zip(values) {
            let Some(value) = value else { continue };
            let is_counter = name.ends_with("_total");
            let data = if is_counter { MetricData::counter(value) } else { MetricData::Gauge(value) };
            all.push(MetricSnapshot { name, help, unit: Unit::of_name(name), data });
        }
    }
}

fn read_file(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The resource usage of the process that runs this code, as reported by the operating system.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct ProcessUsage {
    /// User and system CPU time since the start of the process, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Number of open file descriptors.
    pub open_files: u64,
    /// Number of threads.
    pub threads: u64,
}

impl ProcessUsage {
    /// Reads the usage from `/proc`. Returns `None` on systems without `/proc`.
    #[must_use]
    pub fn read() -> Option<Self> {
        let stat = ProcStat::read()?;
        Some(Self {
            cpu_seconds: stat.cpu_seconds,
            resident_bytes: resident_bytes()?,
            open_files: open_file_count()?,
            threads: stat.threads,
        })
    }
}

/// Some fields of `/proc/self/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct ProcStat {
    cpu_seconds: f64,
    threads: u64,
    /// Time between the boot of the system and the start of the process, in seconds.
    started_after_boot: f64,
    virtual_bytes: u64,
}

impl ProcStat {
    fn read() -> Option<Self> {
        Self::parse(&read_file("/proc/self/stat")?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses. The name can itself contain
        // parentheses, so the last one ends the field.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // The manual counts fields from 1, and `fields` lacks the first two.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
        Some(Self {
            cpu_seconds: seconds(field(14)?.checked_add(field(15)?)?),
            threads: field(20)?,
            started_after_boot: seconds(field(22)?),
            virtual_bytes: field(23)?,
        })
    }
}

/// Returns the resident memory of this process in bytes: `VmRSS` in `/proc/self/status`. Returns
/// `None` on systems without `/proc`.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    // `/proc/self/statm` has this number too, but in pages, and does not state their size.
    parse_kibibytes(&read_file("/proc/self/status")?, "VmRSS:")
}

/// Returns the number of bytes in the line `name 123 kB` of a file of `/proc`. `name` includes the
/// colon.
#[must_use]
pub fn parse_kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    number.checked_mul(1024)
}

/// Returns the soft limit of open files in `/proc/self/limits`, or `None` if there is no limit.
fn parse_max_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Returns the boot time of the system in `/proc/stat`, in seconds since the Unix epoch.
fn parse_boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Returns the number of open file descriptors.
fn open_file_count() -> Option<u64> {
    const PATH: &str = "/proc/self/fd";
    // Since Linux 6.2, the size of the directory is the number of its entries. Older kernels report
    // a size of 0. The size is cheaper than listing, which can mean a million entries.
    if let Ok(directory) = fs::metadata(PATH)
        && directory.len() > 0
    {
        return Some(directory.len());
    }
    // The list contains the descriptor of the directory itself, which is open during the listing.
    let entry_count = fs::read_dir(PATH).ok()?.count() as u64;
    Some(entry_count.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str = "4711 (a) b (c)) S 1 4711 4711 0 -1 4194560 2046 0 3 0 1234 66 0 0 20 0 8 0 987654 \
        23068672 1536 18446744073709551615 1 1 0 0 0 0 0 4096 17642 0 0 0 17 1 0 0 0 0 0";

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let expected = ProcStat {
            cpu_seconds: 13.0,
            threads: 8,
            started_after_boot: 9876.54,
            virtual_bytes: 23_068_672,
        };
        assert_eq!(ProcStat::parse(STAT), Some(expected));
    }

    #[test]
    fn memory_and_limits_are_found_by_name() {
        assert_eq!(parse_kibibytes("VmHWM:\t  9000 kB\nVmRSS:\t    6144 kB\n", "VmRSS:"), Some(6_291_456));
        assert_eq!(parse_kibibytes("Name:\tVmRSS\n", "VmRSS:"), None);
        let limits = "Limit    Soft Limit  Hard Limit  Units\nMax open files   1024   524288   files\n";
        assert_eq!(parse_max_open_files(limits), Some(1024));
        assert_eq!(parse_max_open_files("Max open files  unlimited  unlimited  files"), None);
        assert_eq!(parse_boot_time("cpu 1 2 3\nbtime 1700000000\nprocesses 4\n"), Some(1_700_000_000.0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn process_usage_is_read() {
        let process = ProcessUsage::read().unwrap();
        assert!(
            process.resident_bytes > 100_000 && process.threads >= 1 && process.open_files >= 3,
            "{process:?}"
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn process_metrics_are_in_the_text() {
        let mut registry = crate::Registry::new();
        registry.register_process();
        let text = registry.encode_as(crate::Format::Prometheus);
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim().parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total ") >= 0.0);
        assert!(value("process_resident_memory_bytes ") > 4096.0);
        assert!(value("process_virtual_memory_bytes ") >= value("process_resident_memory_bytes "));
        assert!(value("process_open_fds ") >= 1.0 && value("process_open_fds ") <= value("process_max_fds "));
        assert!(value("process_start_time_seconds ") > 1_600_000_000.0);
        assert!(value("process_threads ") >= 1.0);
        for (name, _) in METRICS {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
        assert_eq!(text.matches("# TYPE").count(), METRICS.len());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn open_descriptors_are_counted() {
        let files: Vec<_> = (0..500).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        // Other tests of this process can open more files at the same time.
        assert!(open_file_count().unwrap() >= files.len() as u64);
    }

    proptest! {
        #[test]
        fn any_text_parses_without_panic(text in "\\PC{0,80}|[0-9 )(]{0,120}", cut in 0..200_usize) {
            let _ = (ProcStat::parse(&text), parse_kibibytes(&text, "VmRSS:"), parse_max_open_files(&text), parse_boot_time(&text));
            let cut = &STAT[..cut.min(STAT.len())];
            // 23 fields are needed.
            prop_assert_eq!(ProcStat::parse(cut).is_some(), cut.len() > cut_after_virtual_bytes());
        }
    }

    /// Returns the length from which the 23rd field has at least one digit.
    fn cut_after_virtual_bytes() -> usize {
        STAT.find("23068672").unwrap()
    }
}
