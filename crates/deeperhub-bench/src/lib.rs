//! A load generator for DeeperHub servers. It measures throughput, latency, message loss, message
//! order, and the CPU time and memory of a server on the same machine.
//!
//! ```no_run
//! use deeperhub_bench::{Args, BenchError};
//!
//! # fn main() -> Result<(), BenchError> {
//! let args = Args::from_flags(["echo", "--connections", "10", "--messages", "1000"])?;
//! let report = deeperhub_bench::run(args)?;
//! println!("{report}");
//! assert!(!report.has_faults());
//! # Ok(())
//! # }
//! ```
//!
//! [`Args`] contains the flags of one scenario. A `Plan` is created from them, and one `Worker` per
//! thread executes the plan. A worker runs an event loop over its connections. The connections have
//! no tasks, queues or timers of their own. They share one read buffer and one write buffer. The
//! generator thus needs less CPU time than the server. Each message contains a `Stamp`. From the
//! stamps, receivers compute latency, loss, duplicates and order.

mod args;
mod connection;
mod counters;
mod disconnect_reason;
mod error;
mod frame;
mod handshake;
mod message_encoder;
mod open_files;
mod plan;
mod progress;
mod recovery;
mod report;
mod run;
mod scenario;
mod schedule;
mod sequence_tracker;
mod server_process;
mod server_url;
mod shared_state;
mod stamp;
mod thread_state;
mod timer;
mod tls;
mod transport;
mod usage;
mod worker;

pub use args::Args;
pub use error::BenchError;
pub use report::{
    Churn, Connections, Load, Messages, Percentiles, Recovery, Report, ServerUsage, SlowReaders,
};
pub use run::{run, run_with_progress};

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
