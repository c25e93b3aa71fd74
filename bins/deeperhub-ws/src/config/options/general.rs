//! Threads, name and end of the process.

use std::path::PathBuf;

use clap::Args;
use deeperhub_args::{Time, whole};

use crate::config::values::{IoUring, NodeId};

/// Options under the heading "General".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "General")]
pub(crate) struct GeneralOptions {
    /// Read settings from this TOML file; flags and variables override it
    ///
    /// The keys are the names of the flags with `_` for `-`, all at the top level. Only rules for
    /// topics may also be tables, `[[topics]]`, at the end. An unknown key is an error.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    /// Run this many threads for connections
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, 1024))]
    pub(crate) workers: Option<usize>,

    /// Batch socket reads and writes through io_uring (Linux)
    ///
    /// `auto` uses io_uring if the kernel allows it, which most container engines do not by
    /// default. A log line says if it is unavailable, and the metric deeperhub_io_uring_workers
    /// counts the workers that use it.
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) io_uring: Option<IoUring>,

    /// Name this node; client IDs start with the name
    ///
    /// 1 to 32 of `A-Z a-z 0-9 _ -`. Each node of a cluster needs its own name.
    #[arg(long, value_name = "NAME")]
    pub(crate) node_id: Option<NodeId>,

    /// Close connections over this time after SIGTERM or SIGINT; 0 closes all at once
    ///
    /// Connections are closed at an even pace, the last one early enough to answer before the
    /// deadline. New connections get 503 meanwhile. The server exits when all are closed, at the
    /// latest after this time. A second signal ends the wait.
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<Time>,

    /// Expect a restart to take this time, from the exit of the server to when its successor
    /// listens
    ///
    /// On a drain, clients are told to reconnect after the drain and this time, if no other node
    /// serves them. With other nodes in the cluster they are told to reconnect at once. Both are
    /// paced by --reconnect-rate.
    #[arg(long, value_name = "TIME")]
    pub(crate) restart_time: Option<Time>,
}
