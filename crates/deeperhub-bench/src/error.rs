//! Errors of a run.

use std::io;

/// The reason why a run did not start, or did not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A flag is invalid, or contradicts another flag, the server's address or this machine.
    #[error("{0}")]
    InvalidArgs(String),
    /// The server's name has no address.
    #[error("cannot resolve {address}: {error}")]
    Resolve {
        /// Host and port of the server.
        address: String,
        /// The resolver's error.
        error: io::Error,
    },
    /// The limit of open files cannot be read.
    #[error("cannot read the limit of open files (RLIMIT_NOFILE): {0}")]
    ReadOpenFileLimit(io::Error),
    /// The connections need more open files than this process may have.
    #[error(
        "the limit of open files (RLIMIT_NOFILE) is {limit} for this user, but {connections} connections need \
         {needed}: raise it (`ulimit -n {needed}`) or use fewer connections"
    )]
    OpenFileLimit {
        /// The hard limit.
        limit: u64,
        /// Connections of the run.
        connections: usize,
        /// Open files that the run needs.
        needed: u64,
    },
    /// Connections did not open.
    #[error("cannot open {failed} of {requested} connections to {url}: {reasons}")]
    Connect {
        /// Connections that did not open.
        failed: u64,
        /// Connections of the run.
        requested: usize,
        /// URL of the server, without its query.
        url: String,
        /// Each kind of error with its count, and a hint for the first kind.
        reasons: String,
    },
    /// A system call that every run needs failed.
    #[error("a system call of the bench failed: {0}")]
    Io(#[from] io::Error),
    /// The report cannot be encoded as JSON.
    #[error("cannot encode the report as JSON: {0}")]
    Json(serde_json::Error),
}
