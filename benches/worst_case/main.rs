//! Measures the cost for other clients of attacks that stay within every limit:
//! `cargo run --release -p deeperhub-benches --bin worst-case`.
//!
//! Builds deeperhub-ws and starts it with default limits and one worker on the first core, a new
//! process for each row. Attackers run on the second core, and each attack reaches exactly one
//! limit. Healthy clients beside them measure the latency of echoes and deliveries. The attacks are
//! the same as in `tests/adversary`.
//!
//! Runs on Linux only: it needs `/proc` and `taskset`.

#[path = "../../tests/adversary/attack/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod attack;
#[path = "../../tests/adversary/healthy.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod healthy;
mod row;
mod server;
#[path = "../../tests/support/wire.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod wire;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::attack::Attack;
use crate::row::{HEAD, Row};
use crate::server::{Server, Tools};

/// Measures what attacks that stay within every limit cost other clients.
#[derive(Debug, Parser)]
struct Options {
    /// Attackers per row
    #[arg(long, value_name = "N", default_value_t = 100)]
    clients: usize,

    /// Seconds per row
    #[arg(long, value_name = "N", default_value_t = 8)]
    seconds: u64,

    /// Only the attacks whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,

    /// Server program to attack; without it, one is built in the release profile
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    let tools = Tools::prepare(options.server.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let time = Duration::from_secs(options.seconds);
    println!("{HEAD}");
    let is_wanted = |row: &Row| row.name().contains(&options.only);
    for row in Row::all(options.clients).iter().filter(|row| is_wanted(row)) {
        eprintln!("{row:?}");
        match runtime.block_on(row.measure(&tools, time)) {
            Ok(figures) => println!("{figures}"),
            Err(error) => println!("| {} | {} | left out: {error} |", row.limit(), row.name()),
        }
    }
    Ok(())
}

/// Awaits a future with a timeout, for the tests' wire client.
///
/// # Panics
///
/// If the future is not ready after 30 s.
async fn wait_for<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(30), future).await;
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
