//! Compares whole servers: `cargo run --release -p deeperhub-benches --bin compare`.
//!
//! It builds deeperhub-ws and the servers of `peers/`, and drives them by `deeperhub-ws bench`: in each round every
//! scenario with every server, a new process each time, the order turning from round to round. Where the machine has
//! two cores or more, servers have the first and the generator the second. It prints medians.
//!
//! With `--telemetry` it compares the server with itself: without telemetry, with metrics, and with traces.
//!
//! Only Linux: it needs `/proc` and `taskset`.

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
    /// Rounds; medians of fewer than five say little
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: usize,

    /// Seconds of each measurement
    #[arg(long, value_name = "N", default_value_t = 2)]
    seconds: u64,

    /// Only the scenarios whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,

    /// Measure what metrics and traces cost, rather than other servers
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
        println!("{}", telemetry::cost(&tools, options.rounds, options.seconds, &options.only));
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
                    Err(error) => eprintln!("  left out: {error}"),
                }
            }
        }
    }
    println!("{}", table.of(&scenarios, &servers));
    Ok(())
}
