//! Threads, name and end of the process.

use std::path::PathBuf;

use clap::Args;
use deeperhub_args::{Time, whole};

use crate::config::values::{IoUring, NodeId};

/// Options under the heading "General".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "General")]
pub(crate) struct GeneralOptions {
    /// TOML file with settings; flags and variables win over it
    ///
    /// Its keys are the names of the flags with `_` for `-`, all at the top level. An unknown key is an error.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    /// Threads that carry connections [default: the cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, 1024))]
    pub(crate) workers: Option<usize>,

    /// Whether many connections are written and read by one system call (Linux's io_uring) [default: auto]
    ///
    /// `auto`: where the system lets the server, which most container engines do not by default; a log line says so, and
    /// deeperhub_io_uring_workers counts the workers that do. It takes up to a third off the CPU time of a fan-out.
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) io_uring: Option<IoUring>,

    /// Name of this node, with which client ids begin [default: random]
    ///
    /// 1 to 32 of `A-Z a-z 0-9 _ -`. Give each node a name of its own.
    #[arg(long, value_name = "NAME")]
    pub(crate) node_id: Option<NodeId>,

    /// Time over which connections are closed at SIGTERM or SIGINT [default: 30s]
    ///
    /// The first is closed at once, the others follow evenly, the last some time before the end, so that it can answer.
    /// New connections are refused with 503 meanwhile. The server exits as soon as all are gone, at the latest when
    /// the time is over; a second signal ends the wait. `0` closes all at once.
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<Time>,

    /// Time from the end of the server to when its successor listens [default: 5s]
    ///
    /// Where no other node is there, clients that a drain closes or refuses are told to come back
    /// when the drain is over and this time has passed; with other nodes in the cluster, at once.
    /// Either way one follows the other, at `--reconnect-rate`.
    #[arg(long, value_name = "TIME")]
    pub(crate) restart_time: Option<Time>,
}
