//! `config`: checks and prints the configuration.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;

use crate::config::default_file::default_file;
use crate::config::effective::Settings;
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::config::resolve::resolve;
use crate::exit::{bad_configuration, print};
use crate::serve;

/// A subcommand of `config`.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigAction {
    /// Check flags, environment and file: exit 0 if they are valid, 2 if not
    Check,
    /// Print the effective configuration and the origin of each value
    Show,
    /// Print a file with every setting, its description and its default
    Default,
}

/// Runs the subcommand with the settings that `layers` reads.
pub(crate) fn run(
    action: &ConfigAction,
    layers: impl FnOnce() -> Result<Layers, Vec<ConfigError>>,
) -> ExitCode {
    let result = match action {
        ConfigAction::Check => layers().and_then(resolve).map(|settings| check(&settings)),
        ConfigAction::Show => layers().and_then(resolve).map(|settings| print(&settings.show())),
        ConfigAction::Default => default_file().map(|file| print(&file)),
    };
    result.unwrap_or_else(|errors| bad_configuration(&errors))
}

/// Runs the preflight of a start with valid settings, and prints warnings and the result.
fn check(settings: &Settings) -> ExitCode {
    let warnings = match serve::preflight(settings) {
        Ok(warnings) => warnings,
        Err(error) => return bad_configuration(&[error]),
    };
    for warning in settings.warnings.iter().chain(&warnings) {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    print(&"The configuration is valid.\n")
}
