//! The allocator, and what it says of itself.

use deeperhub_metrics::Unit;
use deeperhub_node::CustomGauge;
use tikv_jemalloc_ctl::{epoch, stats};

/// jemalloc gives memory back to the system when a burst is over, a second after it was freed (`.cargo/config.toml`);
/// glibc's allocator keeps nearly all of it, with which a memory budget could never say that there is room again.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What it holds, from what the program asked for to what it keeps of the address space.
pub(crate) const GAUGES: [CustomGauge; 6] = [
    gauge("deeperhub_memory_allocated_bytes", "What the program has allocated and not freed", || {
        now(stats::allocated::read)
    }),
    gauge("deeperhub_memory_active_bytes", "Pages that hold something that is allocated", || {
        now(stats::active::read)
    }),
    gauge("deeperhub_memory_metadata_bytes", "What the allocator needs for its own books", || {
        now(stats::metadata::read)
    }),
    gauge(
        "deeperhub_memory_resident_bytes",
        "Pages of the allocator that are in memory, free ones among them",
        || now(stats::resident::read),
    ),
    gauge("deeperhub_memory_mapped_bytes", "Address space in use by the allocator", || {
        now(stats::mapped::read)
    }),
    gauge(
        "deeperhub_memory_retained_bytes",
        "Address space that the allocator keeps without memory behind it",
        || now(stats::retained::read),
    ),
];

const fn gauge(name: &'static str, help: &'static str, read: fn() -> i64) -> CustomGauge {
    CustomGauge { name, help, unit: Unit::Bytes, read }
}

/// A statistic as of now: they are those of the last epoch, and each reading begins one. 0 where jemalloc keeps none.
fn now(read: impl FnOnce() -> tikv_jemalloc_ctl::Result<usize>) -> i64 {
    let read = epoch::advance().and_then(|_| read());
    read.ok().and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> i64 {
        let gauge = GAUGES.iter().find(|gauge| gauge.name == format!("deeperhub_memory_{name}_bytes"));
        (gauge.unwrap().read)()
    }

    #[test]
    fn what_is_allocated_is_seen_and_what_is_freed_is_not() {
        const SIZE: i64 = 64 << 20;
        let before = read("allocated");
        let block = vec![1_u8; SIZE as usize];
        let with = read("allocated");
        assert!(with - before > SIZE / 2, "{before} {with}");
        assert!(read("resident") >= read("active") && read("active") >= with, "{with}");
        drop(block);
        assert!(read("allocated") < with - SIZE / 2);
        assert!(read("metadata") > 0 && read("mapped") > 0 && read("retained") >= 0);
    }
}
