//! Exit codes and output of the subcommands.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Exit code of a failure to start or to run.
pub(crate) const FAILED: u8 = 1;
/// Exit code of an error in flags, environment or file. clap uses the same code.
const BAD_CONFIGURATION: u8 = 2;

/// Prints an error to standard error and returns [`FAILED`].
pub(crate) fn failed(error: &dyn Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(FAILED)
}

/// Prints each error to standard error and returns the exit code of a bad configuration.
pub(crate) fn bad_configuration(errors: &[impl Display]) -> ExitCode {
    for error in errors {
        let _ = writeln!(io::stderr(), "error: {error}");
    }
    ExitCode::from(BAD_CONFIGURATION)
}

/// Prints a text to standard output. A closed pipe counts as success, because `| head` closes it.
pub(crate) fn print(text: &dyn Display) -> ExitCode {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            failed(&format_args!("cannot write to standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Returns the messages of an error and its causes, outermost first.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
