//! The log.

use clap::Args;
use deeperhub_args::whole;

use super::MAX_BYTES;
use crate::config::values::{LogFormat, LogLevel};

/// Options under the heading "Logs".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Logs")]
pub(crate) struct LogOptions {
    /// Log events of this level and above, to standard error
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub(crate) log_level: Option<LogLevel>,

    /// Write log lines in this format
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) log_format: Option<LogFormat>,

    /// Queue at most this many bytes of log lines for a slow standard error; more are dropped and
    /// counted
    ///
    /// A line reports how many lines are missing in its place (deeperhub_log_lines_lost_total
    /// counts them). The last quarter is reserved for `info` and above.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(4096, MAX_BYTES))]
    pub(crate) log_queue_bytes: Option<usize>,
}
