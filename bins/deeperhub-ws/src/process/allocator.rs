//! The allocator and its metrics.

use deeperhub_metrics::Unit;
use deeperhub_node::CustomGauge;
use tikv_jemalloc_ctl::{epoch, stats};

/// jemalloc returns memory to the system a second after the memory was freed
/// (`.cargo/config.toml`). glibc's allocator retains nearly all memory after a burst, so the memory
/// in use would stay over the budget.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The allocator's gauges.
pub(crate) const GAUGES: [CustomGauge; 6] = [
    gauge("deeperhub_memory_allocated_bytes", "Bytes allocated by the program and not freed", || {
        now(stats::allocated::read)
    }),
    gauge("deeperhub_memory_active_bytes", "Bytes in pages with at least one allocation", || {
        now(stats::active::read)
    }),
    gauge("deeperhub_memory_metadata_bytes", "Bytes used for allocator metadata", || {
        now(stats::metadata::read)
    }),
    gauge(
        "deeperhub_memory_resident_bytes",
        "Bytes of allocator pages in physical memory, including free ones",
        || now(stats::resident::read),
    ),
    gauge("deeperhub_memory_mapped_bytes", "Bytes of address space mapped by the allocator", || {
        now(stats::mapped::read)
    }),
    gauge(
        "deeperhub_memory_retained_bytes",
        "Bytes of address space kept by the allocator without physical memory",
        || now(stats::retained::read),
    ),
];

const fn gauge(name: &'static str, help: &'static str, read: fn() -> i64) -> CustomGauge {
    CustomGauge { name, help, unit: Unit::Bytes, read }
}

/// Reads the current value of a statistic. Returns 0 if jemalloc does not have the statistic.
/// Advances jemalloc's epoch first, because jemalloc refreshes its statistics only then.
fn now(read: impl FnOnce() -> tikv_jemalloc_ctl::Result<usize>) -> i64 {
    let bytes = epoch::advance().and_then(|_| read());
    bytes.ok().and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> i64 {
        let gauge = GAUGES.iter().find(|gauge| gauge.name == format!("deeperhub_memory_{name}_bytes"));
        (gauge.unwrap().read)()
    }

    /// Other tests of the process allocate at the same time, but not half of this. No page of it is
    /// touched, so it takes no physical memory.
    const BYTES: i64 = 1 << 30;

    #[test]
    fn gauges_follow_allocations() {
        let before = read("allocated");
        let block = vec![0_u8; BYTES as usize];
        let with = read("allocated");
        assert!(with - before > BYTES / 2, "{before} {with}");
        for name in ["active", "resident", "mapped"] {
            assert!(read(name) > BYTES / 2, "{name} {}", read(name));
        }
        drop(block);
        let after = read("allocated");
        assert!(after < with - BYTES / 2, "{with} {after}");
        assert!(read("metadata") > 0 && read("retained") >= 0);
    }
}
