//! The hub as a program: reads flags, environment and file, and runs a subcommand.
//!
//! Exit codes:
//!
//! - 0: success. `serve` was stopped by a signal.
//! - 1: failure to start or to run. For `tail`: the server refused, for example because the topic
//!   has no history. For `health`: the server is not ready. For `bench`: the load
//!   test did not run to its end, or it found faults and `--fail-on-loss` is set.
//! - 2: error in flags, environment or file.

mod cli;
mod commands;
mod config;
mod exit;
mod log;
mod process;
mod reload;
mod serve;

use std::process::ExitCode;

use clap::ArgMatches;

use crate::cli::Action;
use crate::commands::{bench, completions, config as config_command, health, schema, tail, token, top};
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::exit::{bad_configuration, failed, print};
use crate::serve::Control;

fn main() -> ExitCode {
    // Signal handlers are installed first: a signal during startup must not end the process.
    let early_control = cli::serves(std::env::args_os()).then(Control::new);
    let matches = cli::command().get_matches();
    let (action, flags) = match cli::action(&matches) {
        Ok(action_and_flags) => action_and_flags,
        Err(error) => error.exit(),
    };
    let with_layers = |run: &dyn Fn(Layers) -> ExitCode| match layers(&flags) {
        Ok(layers) => run(layers),
        Err(errors) => bad_configuration(&errors),
    };
    match action {
        Action::Serve => match early_control.unwrap_or_else(Control::new) {
            Ok(control) => serve::serve(control, flags.iter().copied().cloned().collect()),
            Err(error) => failed(&error),
        },
        Action::Config(action) => config_command::run(&action, || layers(&flags)),
        Action::Health => with_layers(&|layers| health::check(layers.options.api)),
        Action::Top(top) => with_layers(&|layers| top::run(layers.options.api, &top)),
        Action::Tail(tail) => with_layers(&|layers| tail::run(layers.options.api, &tail)),
        Action::Token(token) => with_layers(&|layers| token::print(&layers, &token)),
        Action::Bench(bench) => bench::run(*bench),
        Action::Schema { schema } => match schema::text(schema) {
            Ok(text) => print(&text),
            Err(error) => failed(&format_args!("cannot serialize the description: {error}")),
        },
        Action::Completions { shell } => print(&completions::script(shell)),
    }
}

fn layers(flags: &[&ArgMatches]) -> Result<Layers, Vec<ConfigError>> {
    Layers::read(flags.iter().copied(), std::env::vars_os())
}
