//! What a server on this machine uses, as the kernel counts it.

use std::fs;
use std::io;

use rustix::param::{clock_ticks_per_second, page_size};

/// A process to look at (`--server-pid`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerProcess(pub(crate) u32);

/// What a process has used so far, and has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessUsage {
    /// Processor time of all its threads, user and kernel, in nanoseconds; counted in ticks of mostly 10 ms.
    pub(crate) cpu: u64,
    /// Resident memory in bytes.
    pub(crate) resident: u64,
}

impl ServerProcess {
    /// Looks at the process now.
    ///
    /// # Errors
    ///
    /// There is no such process, or no `/proc` as Linux has it.
    pub(crate) fn usage(self) -> io::Result<ProcessUsage> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        let parsed = parse(&text, clock_ticks_per_second(), page_size() as u64);
        parsed
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its stat file is not as proc(5) says"))
    }
}

/// proc(5): fields 14 and 15 are ticks in user mode and in the kernel, 24 is resident pages. The name, field 2, stands
/// in parentheses and may have any character, those included.
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
    fn the_fields_are_found_behind_any_name() {
        let stat = "4711 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20 0 3 0 99 1000000 250 18446744073709551615 1";
        let usage = ProcessUsage { cpu: 1_500_000_000, resident: 1_024_000 };
        assert_eq!(parse(stat, 100, 4096), Some(usage));
        assert_eq!(parse("4711 (a) S 1 2", 100, 4096), None);
        assert_eq!(parse("", 100, 4096), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_runs_can_be_looked_at_and_no_other() {
        let own = ServerProcess(std::process::id()).usage().unwrap();
        assert!(own.resident > 0);
        assert!(ServerProcess(u32::MAX).usage().is_err());
    }
}
