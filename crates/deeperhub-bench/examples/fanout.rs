//! Measures a fan-out: `cargo run -p deeperhub-bench --example fanout -- ws://127.0.0.1:8080/`.

use deeperhub_bench::{Args, BenchError, Report};

/// Publishes 200 messages to 10 subscribers of one topic.
pub(crate) fn measure(url: &str) -> Result<Report, BenchError> {
    let flags = ["fanout", "--url", url, "--subscribers", "10", "--messages", "200"];
    deeperhub_bench::run(Args::from_flags(flags)?)
}

fn main() -> Result<(), BenchError> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "ws://127.0.0.1:8080/".to_owned());
    let report = measure(&url)?;
    println!("{report}");
    println!("has faults: {}", report.has_faults());
    Ok(())
}
