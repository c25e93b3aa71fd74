//! Exit codes, and what is printed before the program ends.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Could not start, or failed.
pub(crate) const FAILED: u8 = 1;
/// An error in flags, environment or file; clap exits with the same.
const BAD_CONFIGURATION: u8 = 2;

/// Prints an error to standard error.
pub(crate) fn failed(error: &dyn Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(FAILED)
}

/// Prints each configuration error to standard error.
pub(crate) fn bad_configuration(errors: &[impl Display]) -> ExitCode {
    for problem in errors {
        let _ = writeln!(io::stderr(), "error: {problem}");
    }
    ExitCode::from(BAD_CONFIGURATION)
}

/// Prints to standard output; a reader that has gone is no error, as with `| head`.
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
