//! The `bench` subcommand: runs the load generator and prints its report.

use std::process::ExitCode;

use deeperhub_bench::{Args, BenchError};

use crate::exit::{FAILED, bad_configuration, failed, print};

/// Runs the load test and prints its report.
///
/// Exit codes: 0 if the test ran to its end. 1 if it did not, or if it found faults and
/// `--fail-on-loss` is set. 2 if flags are invalid.
pub(crate) fn run(args: Args) -> ExitCode {
    let (prints_json, fails_on_loss) = (args.prints_json(), args.fails_on_loss());
    let report = match deeperhub_bench::run_with_progress(args) {
        Ok(report) => report,
        Err(error) => return fail(&error),
    };
    let printed = if prints_json {
        match report.to_json() {
            Ok(json) => print(&format_args!("{json}\n")),
            Err(error) => return fail(&error),
        }
    } else {
        print(&report)
    };
    if fails_on_loss && report.has_faults() { ExitCode::from(FAILED) } else { printed }
}

fn fail(error: &BenchError) -> ExitCode {
    if matches!(error, BenchError::InvalidArgs(_)) { bad_configuration(&[error]) } else { failed(error) }
}
