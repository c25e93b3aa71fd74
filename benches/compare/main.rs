//! Compares whole servers: `cargo run --release -p deeperhub-benches --bin compare`.
//!
//! Builds deeperhub-ws and the servers in `peers/`, and measures them with `deeperhub-ws bench`. A
//! round runs every scenario with every server, each in a new process; the order of the servers
//! rotates from round to round. If the machine has two cores or more, the server runs on the first
//! and the load generator on the second. Prints medians.
//!
//! With `--telemetry`, it compares deeperhub-ws with itself: without telemetry, with metrics, with
//! traces, and with counts of the busiest topics and clients.
//!
//! Runs on Linux only: it needs `/proc` and `taskset`.

mod scenario;
mod servers;
mod table;
mod telemetry;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use crate::scenario::SCENARIOS;
use crate::servers::Tools;
use crate::table::Table;

/// Compares deeperhub-ws with servers built on tokio-tungstenite and on npm `ws`.
#[derive(Debug, Parser)]
struct Options {
    /// Number of rounds; use at least five
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: usize,

    /// Seconds per measurement
    #[arg(long, value_name = "N", default_value_t = 2)]
    seconds: u64,

    /// Only scenarios whose name contains this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,

    /// Measure the cost of metrics, of traces, and of counts of the busiest topics and clients,
    /// instead of other servers
    #[arg(long)]
    telemetry: bool,
}

fn main() -> ExitCode {
    match compare(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<(), Box<dyn Error>> {
    let tools = Tools::build(!options.telemetry)?;
    if options.telemetry {
        println!("{}", telemetry::measure_cost(&tools, options.rounds, options.seconds, &options.only));
        return Ok(());
    }
    let servers = tools.servers();
    let scenarios: Vec<_> =
        SCENARIOS.iter().filter(|scenario| scenario.name.contains(&options.only)).collect();
    let mut table = Table::default();
    for round in 0..options.rounds {
        for scenario in &scenarios {
            for turn in 0..servers.len() {
                let server = &servers[(round + turn) % servers.len()];
                eprintln!("round {} of {}: {}, {}", round + 1, options.rounds, scenario.name, server.name);
                match tools.measure(server, scenario, options.seconds) {
                    Ok(figures) => table.add(scenario.name, server.name, figures),
                    Err(error) => eprintln!("  skipped: {error}"),
                }
            }
        }
    }
    println!("{}", table.to_markdown(&scenarios, &servers));
    Ok(())
}
