//! Memory of the client's process over time.

use std::fmt;
use std::time::Duration;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(5);

/// Growth of the memory between the second and the last quarter of a run that counts as flat: buffers
/// of the language's runtime come and go.
const MAX_GROWTH: f64 = 1.2;
const MAX_GROWTH_KIB: f64 = 8192.0;

/// Samples of a process's resident memory.
pub(super) struct MemoryLog {
    process: Option<u32>,
    kibibytes: Vec<u64>,
}

impl MemoryLog {
    pub(super) fn new(process: Option<u32>) -> Self {
        Self { process, kibibytes: Vec::new() }
    }

    /// Takes a sample, if one is due.
    pub(super) fn sample(&mut self, elapsed: Duration) {
        let due = INTERVAL * u32::try_from(self.kibibytes.len()).unwrap_or(u32::MAX);
        if elapsed < due {
            return;
        }
        let Some(process) = self.process else { return };
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        self.kibibytes.extend(line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()));
    }

    /// Returns the medians of the second and the last quarter, once there are 24 samples.
    fn quarters(&self) -> Option<(u64, u64)> {
        let quarter = self.kibibytes.len() / 4;
        let median = |samples: &[u64]| {
            let mut samples = samples.to_vec();
            samples.sort_unstable();
            samples[samples.len() / 2]
        };
        (quarter >= 6).then(|| {
            let last = self.kibibytes.len() - quarter;
            (median(&self.kibibytes[quarter..2 * quarter]), median(&self.kibibytes[last..]))
        })
    }

    /// Returns `true` if the memory did not grow, or if the run was too short to tell.
    pub(super) fn is_flat(&self) -> bool {
        self.quarters().is_none_or(|(early, late)| {
            late as f64 <= (early as f64 * MAX_GROWTH).max(early as f64 + MAX_GROWTH_KIB)
        })
    }
}

impl fmt::Display for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quarters() {
            Some((early, late)) => {
                let verdict = if self.is_flat() { "flat" } else { "FAILED: it grows" };
                write!(
                    f,
                    "memory of the client: {early} KiB in the second quarter, {late} KiB in the last ({verdict})"
                )
            }
            None => write!(f, "memory of the client: too few samples"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(kibibytes: impl Iterator<Item = u64>) -> MemoryLog {
        MemoryLog { process: None, kibibytes: kibibytes.collect() }
    }

    #[test]
    fn growth_is_told_from_noise() {
        assert!(log((0..100).map(|n| 20_000 + n % 7 * 100)).is_flat());
        assert!(!log((0..100).map(|n| 20_000 + n * 400)).is_flat());
        assert!(log((0..10).map(|n| n * 100_000)).is_flat());
    }

    #[test]
    fn the_own_process_has_memory() {
        let mut log = MemoryLog::new(Some(std::process::id()));
        log.sample(Duration::ZERO);
        log.sample(Duration::ZERO);
        assert!(matches!(log.kibibytes[..], [kibibytes] if kibibytes > 500), "{:?}", log.kibibytes);
    }
}
