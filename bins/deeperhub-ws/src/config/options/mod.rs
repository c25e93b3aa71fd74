//! The options: settings as the operator writes them, before defaults and checks. Each heading of
//! the help is a struct, and each setting is a field.
//!
//! Flag, variable and key of a setting follow from the field's name: `--max-queue-bytes`,
//! `DEEPERHUB_MAX_QUEUE_BYTES` and `max_queue_bytes`. All three share a parser (see `layers`). The
//! doc comment of a field is its help; `help` appends the default.
//!
//! `resolve` destructures these structs without `..`, so that the compiler reports a new field that
//! is not resolved.

mod api;
mod cluster;
mod compression;
mod general;
mod history;
mod limits;
mod listening;
mod logs;
mod telemetry;
mod tls;
mod tokens;
mod web_pages;

use clap::{Args, Command};

pub(crate) use api::ApiOptions;
pub(crate) use cluster::ClusterOptions;
pub(crate) use compression::CompressionOptions;
pub(crate) use general::GeneralOptions;
pub(crate) use history::HistoryOptions;
pub(crate) use limits::LimitOptions;
pub(crate) use listening::ListeningOptions;
pub(crate) use logs::LogOptions;
pub(crate) use telemetry::TelemetryOptions;
pub(crate) use tls::TlsOptions;
pub(crate) use tokens::TokenOptions;
pub(crate) use web_pages::WebPageOptions;

/// Maximum of sizes, 1 GiB, because some counters of frames and queues have 32 bits.
const MAX_BYTES: u64 = 1 << 30;
/// Maximum of counts.
const MAX_COUNT: u64 = 100_000_000;

/// All options. `None` leaves a setting to its default.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) general: GeneralOptions,
    #[command(flatten)]
    pub(crate) listening: ListeningOptions,
    #[command(flatten)]
    pub(crate) tls: TlsOptions,
    #[command(flatten)]
    pub(crate) api: ApiOptions,
    #[command(flatten)]
    pub(crate) tokens: TokenOptions,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
    #[command(flatten)]
    pub(crate) history: HistoryOptions,
    #[command(flatten)]
    pub(crate) compression: CompressionOptions,
    #[command(flatten)]
    pub(crate) web_pages: WebPageOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,
    #[command(flatten)]
    pub(crate) logs: LogOptions,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryOptions,
}

impl Options {
    /// Returns a command with these options only, which parses the values of all layers.
    pub(crate) fn parser() -> Command {
        Self::augment_args(Command::new("options").no_binary_name(true).disable_help_flag(true))
    }

    /// Returns the keys of all settings, in the order of the fields.
    pub(crate) fn keys() -> Vec<String> {
        Self::parser().get_arguments().map(|argument| argument.get_id().to_string()).collect()
    }
}

/// Returns the flag of a setting.
pub(crate) fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// Returns the environment variable of a setting.
pub(crate) fn variable(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase())
}

/// Settings whose values are secret, so errors do not show them.
pub(crate) const SECRET_KEYS: &[&str] = &["api_key", "cluster"];

/// Setting whose layers add up instead of overriding each other: the rules for topics.
pub(crate) const RULE_KEY: &str = "topic";

/// Prefix of the environment variables.
pub(crate) const VARIABLE_PREFIX: &str = "DEEPERHUB_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_flag_of_its_name_a_heading_and_help() {
        let parser = Options::parser();
        for argument in parser.get_arguments() {
            let key = argument.get_id().as_str();
            assert_eq!(argument.get_long().map(|long| format!("--{long}")), Some(flag(key)), "{key}");
            assert!(argument.get_help_heading().is_some(), "{key} has no heading");
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!help.is_empty() && !help.contains("[default"), "the help of {key} types its default");
        }
    }

    #[test]
    fn names_of_flag_and_variable_follow_the_key() {
        assert_eq!(flag("max_queue_bytes"), "--max-queue-bytes");
        assert_eq!(variable("max_queue_bytes"), "DEEPERHUB_MAX_QUEUE_BYTES");
    }
}
