//! CPU time and memory of the server's process, read from `/proc`.

use std::fs;
use std::io;

use rustix::param::{clock_ticks_per_second, page_size};

/// The process id of the server (`--server-pid`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerProcess(pub(crate) u32);

/// CPU time and memory of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessUsage {
    /// User and kernel time of all threads in nanoseconds. The kernel counts in ticks, mostly of
    /// 10 ms.
    pub(crate) cpu: u64,
    /// Resident memory in bytes.
    pub(crate) resident: u64,
}

impl ServerProcess {
    /// Reads the current usage.
    ///
    /// # Errors
    ///
    /// If there is no such process, or if the system does not have Linux's `/proc`.
    pub(crate) fn usage(self) -> io::Result<ProcessUsage> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        let parsed = parse(&text, clock_ticks_per_second(), page_size() as u64);
        parsed
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its stat file does not match proc(5)"))
    }
}

/// Parses `/proc/PID/stat`. In proc(5), fields 14 and 15 are ticks in user mode and in the kernel,
/// field 24 is the number of resident pages. Field 2, the name in parentheses, may itself contain
/// parentheses.
fn parse(stat: &str, ticks_per_second: u64, page_bytes: u64) -> Option<ProcessUsage> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let mut number = || fields.next()?.parse::<u64>().ok();
    let ticks = number()?.checked_add(number()?)?;
    let resident_pages = fields.nth(8)?.parse::<u64>().ok()?;
    Some(ProcessUsage {
        cpu: ticks.checked_mul(1_000_000_000 / ticks_per_second.max(1))?,
        resident: resident_pages.checked_mul(page_bytes)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_after_any_name() {
        let stat = "4711 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20 0 3 0 99 1000000 250 18446744073709551615 1";
        let usage = ProcessUsage { cpu: 1_500_000_000, resident: 1_024_000 };
        assert_eq!(parse(stat, 100, 4096), Some(usage));
        assert_eq!(parse("4711 (a) S 1 2", 100, 4096), None);
        assert_eq!(parse("", 100, 4096), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn usage_is_read_of_running_processes_only() {
        let own = ServerProcess(std::process::id()).usage().unwrap();
        assert!(own.resident > 0);
        assert!(ServerProcess(u32::MAX).usage().is_err());
    }
}
