//! The hub as a program: reads flags, environment and file, and does what it is asked.
//!
//! Exit codes: 0 done (for `serve`: stopped by a signal), 1 could not start or failed (for `health`: not ready; for
//! `bench`: not carried out), 2 an error in flags, environment or file.

mod allocator;
mod auth;
mod bench;
mod cli;
mod completions;
mod default_file;
mod event_log;
mod failure;
mod file;
mod flood;
mod health;
mod http_get;
mod layers;
mod live;
mod log_lines;
mod log_queue;
mod logging;
mod memory;
mod nofile;
mod options;
mod problem;
mod reload;
mod resolve;
mod schema;
mod serve;
mod settings;
mod signals;
mod start_line;
mod supervise;
mod tls;
mod token;
mod top;
mod values;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::ArgMatches;

use crate::cli::{Action, ConfigAction};
use crate::layers::Layers;
use crate::problem::Problem;
use crate::serve::Control;
use crate::settings::Settings;

/// Could not start, or failed.
const FAILED: u8 = 1;
/// An error in flags, environment or file; clap exits with the same.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    // Comes first: a signal that arrives during startup must not end the process.
    let mut early = cli::serves(std::env::args_os()).then(Control::take);
    let matches = cli::command().get_matches();
    let (action, flags) = match cli::action(&matches) {
        Ok(found) => found,
        Err(error) => error.exit(),
    };
    match action {
        Action::Serve => match early.take().unwrap_or_else(Control::take) {
            Ok(control) => serve::serve(control, flags.iter().copied().cloned().collect()),
            Err(failure) => {
                let _ = writeln!(io::stderr(), "error: {failure}");
                ExitCode::from(FAILED)
            }
        },
        Action::Config(ConfigAction::Check) => with_settings(&flags, |settings| check(&settings)),
        Action::Config(ConfigAction::Show) => with_settings(&flags, |settings| print(&settings.show())),
        Action::Config(ConfigAction::Default) => match default_file::default_file() {
            Ok(file) => print(&file),
            Err(problems) => complain(&problems),
        },
        Action::Health => match layers(&flags) {
            Ok(layers) => health::check(layers.options.api_listen),
            Err(problems) => complain(&problems),
        },
        Action::Top(top) => match layers(&flags) {
            Ok(layers) => top::run(layers.options, &top),
            Err(problems) => complain(&problems),
        },
        Action::Token(token) => match layers(&flags) {
            Ok(layers) => token::print(&layers, &token),
            Err(problems) => complain(&problems),
        },
        Action::Bench(bench) => bench::run(*bench),
        Action::Schema { schema } => match schema::text(schema) {
            Ok(text) => print(&text),
            Err(error) => {
                let _ = writeln!(io::stderr(), "error: the description cannot be written: {error}");
                ExitCode::from(FAILED)
            }
        },
        Action::Completions { shell } => print(&completions::script(shell)),
    }
}

fn layers(flags: &[&ArgMatches]) -> Result<Layers, Vec<Problem>> {
    Layers::gather(flags.iter().copied(), std::env::vars_os())
}

fn with_settings(flags: &[&ArgMatches], then: impl FnOnce(Settings) -> ExitCode) -> ExitCode {
    match layers(flags).and_then(resolve::resolve) {
        Ok(settings) => then(settings),
        Err(problems) => complain(&problems),
    }
}

fn complain(problems: &[Problem]) -> ExitCode {
    for problem in problems {
        let _ = writeln!(io::stderr(), "error: {problem}");
    }
    ExitCode::from(BAD_CONFIGURATION)
}

fn check(settings: &Settings) -> ExitCode {
    let warnings = match serve::rehearse(settings) {
        Ok(warnings) => warnings,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "error: {failure}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    for warning in settings.warnings.iter().chain(&warnings) {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    print(&"The configuration is valid.\n")
}

/// Prints to standard output; a reader that has gone is no error, as with `| head`.
fn print(text: &dyn Display) -> ExitCode {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "error: cannot write to standard output: {error}");
            ExitCode::from(FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}
