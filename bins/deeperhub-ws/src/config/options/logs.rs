//! The log.

use clap::Args;
use deeperhub_args::whole;

use super::MAX_BYTES;
use crate::config::values::{LogFormat, LogLevel};

/// Options under the heading "Logs".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Logs")]
pub(crate) struct LogOptions {
    /// What is logged, to standard error [default: info]
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub(crate) log_level: Option<LogLevel>,

    /// How it is logged [default: text]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) log_format: Option<LogFormat>,

    /// Bytes of log lines that may wait for whoever reads standard error; more are dropped and
    /// counted [default: 1048576]
    ///
    /// A line tells where lines are missing (deeperhub_log_lines_lost_total counts them). The last
    /// quarter is for lines of level `info` and graver.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(4096, MAX_BYTES))]
    pub(crate) log_queue_bytes: Option<usize>,
}
