//! Raises the limit of open files, because each connection is an open file.

use tracing::warn;

use crate::config::effective::Settings;

/// Maximum number of open files besides accepted connections and workers: standard streams,
/// listeners, and connections that are being refused.
const RESERVED_FILES: u64 = 320;

/// Open files of a worker: a poller and a copy of it, a waker, a socket of tokio's signal handling,
/// and an `io_uring`.
const FILES_PER_WORKER: u64 = 5;

/// Raises the limit of open files as high as the settings need it. Logs a warning if the limit
/// stays too low; the server then accepts fewer connections than its settings allow.
pub(crate) fn raise_for(settings: &Settings) {
    let listener = &settings.node.listener;
    if let Err(advice) = raise(listener.limits.max_connections, listener.workers, settings.api_connections())
    {
        warn!("{advice}");
    }
}

/// Raises the limit of open files to the number that connections and workers need.
///
/// # Errors
///
/// If the limit stays too low. The error is advice for the operator.
fn raise(max_connections: usize, workers: usize, api_connections: usize) -> Result<(), String> {
    let needed = needed(max_connections, workers).saturating_add(api_connections as u64);
    let (soft, hard) = rlimit::Resource::NOFILE
        .get()
        .map_err(|error| format!("cannot read the limit of open files (RLIMIT_NOFILE): {error}"))?;
    if soft >= needed {
        return Ok(());
    }
    let reached = rlimit::increase_nofile_limit(needed).unwrap_or(soft);
    if reached >= needed {
        return Ok(());
    }
    Err(format!(
        "the limit of open files (RLIMIT_NOFILE) is {reached}, at most {hard} for this user, but max_connections \
         {max_connections} needs {needed}: raise it (`ulimit -n {needed}`, or LimitNOFILE={needed} in a systemd \
         unit), or lower max_connections"
    ))
}

fn needed(max_connections: usize, workers: usize) -> u64 {
    let workers = u64::try_from(workers).unwrap_or(u64::MAX).saturating_mul(FILES_PER_WORKER);
    u64::try_from(max_connections).unwrap_or(u64::MAX).saturating_add(workers).saturating_add(RESERVED_FILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sufficient_limit_is_not_changed() {
        let before = rlimit::Resource::NOFILE.get().unwrap();
        assert_eq!(raise(1, 1, 1), Ok(()));
        assert_eq!(rlimit::Resource::NOFILE.get().unwrap(), before);
    }

    #[test]
    fn an_insufficient_limit_is_reported() {
        let advice = raise(usize::MAX, 1, 1).unwrap_err();
        assert!(advice.contains("RLIMIT_NOFILE") && advice.contains("max_connections"), "{advice}");
    }
}
