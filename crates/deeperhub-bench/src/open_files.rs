//! The limit of open files.

use crate::error::BenchError;
use crate::plan::Plan;

/// Open files of the process besides connections.
const OTHER_OPEN_FILES: u64 = 64;
/// Open files of each thread: its poll, timer and waker, and one to spare.
const OPEN_FILES_PER_THREAD: u64 = 4;

/// Raises this process's limit of open files to the number that the plan needs.
pub(crate) fn raise_limit(plan: &Plan) -> Result<(), BenchError> {
    let connections = plan.clients + plan.publishers;
    let needed = connections as u64 + OPEN_FILES_PER_THREAD * plan.threads as u64 + OTHER_OPEN_FILES;
    let (soft, hard) = rlimit::Resource::NOFILE.get().map_err(BenchError::ReadOpenFileLimit)?;
    if soft >= needed || rlimit::increase_nofile_limit(needed).unwrap_or(soft) >= needed {
        return Ok(());
    }
    Err(BenchError::OpenFileLimit { limit: hard, connections, needed })
}
