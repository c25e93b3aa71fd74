//! Completes the help of the options with defaults and other numbers from the code, so that the
//! text cannot differ from the code.

use std::num::NonZeroU32;

use clap::Command;
use clap::builder::StyledStr;
use deeperhub_listener::MemoryBudget;
use deeperhub_node::history::Rules;
use deeperhub_security::RateLimit;

use super::effective::EffectiveSetting;
use super::layers::Layers;
use super::resolve::resolve;

/// Defaults in words, for settings that have no value by default, or a value that depends on the
/// machine.
const DEFAULTS_IN_WORDS: [(&str, &str); 23] = [
    ("workers", "number of cores"),
    ("node_id", "random"),
    ("trusted_proxy", "none"),
    ("tls_cert", "none, TLS is off"),
    ("tls_key", "none"),
    ("tls_client_ca", "none, clients need no certificate"),
    ("tls_client_auth", "required"),
    ("api_key", "none"),
    ("api_tls_cert", "none, TLS is off"),
    ("api_tls_key", "none"),
    ("auth_secret_file", "none"),
    ("auth_jwks_file", "none"),
    ("auth_audience", "any"),
    ("auth_issuer", "any"),
    ("max_memory", "what the system grants"),
    ("topic", "none, no topic keeps messages"),
    ("history_dir", "none"),
    ("history_disk_bytes", "none, no limit"),
    ("history_bytes", "256MiB, or an eighth of --max-memory if that is less"),
    ("allowed_origin", "the server's own"),
    ("cluster", "none, a single node"),
    ("cluster_credentials", "none"),
    ("cluster_ca", "those of the system"),
];

/// Defaults of OpenTelemetry. They apply if neither these settings nor OpenTelemetry's variables
/// are set.
const DEFAULTS_OF_OPENTELEMETRY: [(&str, &str); 2] = [("otlp_endpoint", "off"), ("trace_sample_ratio", "1")];

/// Replaces the placeholders in the help of all options with numbers of the code.
pub(crate) fn with_numbers(command: Command) -> Command {
    let burst = |limit: fn(NonZeroU32) -> RateLimit| limit(NonZeroU32::MIN).burst.to_string();
    let numbers = [
        ("{RESERVED_CONNECTIONS}", deeperhub_api::RESERVED_CONNECTIONS.to_string()),
        ("{CONNECTION_BURST}", burst(deeperhub_listener::connection_rate_limit)),
        ("{CONTROL_BURST}", burst(deeperhub_node::control_rate_limit)),
        ("{TOKEN_BURST}", burst(deeperhub_node::token_rate_limit)),
        ("{CONNECTION_BURSTS}", burst(deeperhub_node::burst_rate_per_ip)),
        ("{REFUSE_PERCENT}", MemoryBudget::REFUSE_PERCENT.to_string()),
        ("{SHED_PERCENT}", MemoryBudget::SHED_PERCENT.to_string()),
        ("{INTAKE_PERCENT}", MemoryBudget::INTAKE_PERCENT.to_string()),
        ("{MAX_RULES}", Rules::MAX.to_string()),
    ];
    let fill = |text: &StyledStr| {
        numbers.iter().fold(text.to_string(), |text, (name, number)| text.replace(name, number))
    };
    command.mut_args(|option| match option.get_long_help().map(fill) {
        Some(text) => option.long_help(text),
        None => option,
    })
}

/// Returns the key of each setting, and its default as the help shows it.
pub(crate) fn defaults() -> Vec<(&'static str, String)> {
    let settings = resolve(Layers::default()).map(|settings| settings.effective).unwrap_or_default();
    settings.iter().map(|setting| (setting.key, default_of(setting))).collect()
}

fn default_of(setting: &EffectiveSetting) -> String {
    let in_words = DEFAULTS_IN_WORDS.iter().chain(&DEFAULTS_OF_OPENTELEMETRY);
    match in_words.clone().find(|(key, _)| *key == setting.key) {
        Some((_, words)) => (*words).to_owned(),
        // Written as a flag takes it: lists with commas, and without TOML's brackets and quotes.
        None => setting.toml.iter().flat_map(|toml| toml.chars()).filter(|c| !"[]\" ".contains(*c)).collect(),
    }
}

/// Adds `[default: …]` to the help of each option.
pub(crate) fn with_defaults(command: Command, defaults: &[(&'static str, String)]) -> Command {
    command.mut_args(|option| {
        let Some((_, default)) = defaults.iter().find(|(key, _)| *key == option.get_id().as_str()) else {
            return option;
        };
        let summary = option.get_help().map(ToString::to_string).unwrap_or_default();
        let with_default = format!("{summary} [default: {default}]");
        let option = match option.get_long_help().map(ToString::to_string) {
            Some(text) => option.long_help(text.replacen(&summary, &with_default, 1)),
            None => option,
        };
        option.help(with_default)
    })
}

#[cfg(test)]
mod tests {
    use deeperhub_args::Size;
    use deeperhub_node::history::BudgetLimits;
    use deeperhub_node::trace::Sampler;
    use deeperhub_telemetry::{Overrides, Service, TelemetryConfig};

    use super::*;
    use crate::config::options::Options;

    fn command() -> Command {
        with_defaults(with_numbers(Options::parser()), &defaults())
    }

    #[test]
    fn every_option_shows_its_default_in_short_and_long_help() {
        for option in command().get_arguments().filter(|option| option.get_id() != "config") {
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            let default = help.split_once(" [default: ").map(|(_, default)| default.trim_end_matches(']'));
            assert!(default.is_some_and(|default| !default.is_empty()), "{help}");
            let long = option.get_long_help().map(ToString::to_string);
            assert!(long.is_none_or(|long| long.starts_with(&help) && !long.contains('{')), "{help}");
        }
    }

    #[test]
    fn defaults_are_written_as_flags_take_them() {
        let defaults = defaults();
        let default = |key: &str| defaults.iter().find(|(other, _)| *other == key).unwrap().1.clone();
        assert_eq!(default("path"), "/,/ws");
        assert_eq!(default("drain_timeout"), "30s");
        assert_eq!(default("api_listen"), "127.0.0.1:8081");
        assert_eq!(default("log_level"), "info");
    }

    #[test]
    fn opentelemetrys_defaults_are_those_of_the_exporter() {
        let config = TelemetryConfig::from_variables(Service::new("n", "v"), &Overrides::default(), |_| None);
        for (key, words) in DEFAULTS_OF_OPENTELEMETRY {
            match key {
                "otlp_endpoint" => {
                    assert_eq!(
                        (words, config.traces.is_none(), config.metrics.is_none()),
                        ("off", true, true)
                    );
                }
                "trace_sample_ratio" => {
                    assert_eq!(config.sampler, Sampler::parent_based(words.parse().unwrap()));
                }
                _ => panic!("{key} is not checked"),
            }
        }
    }

    #[test]
    fn the_default_of_history_bytes_in_words_is_that_of_the_code() {
        let words = DEFAULTS_IN_WORDS.iter().find(|(key, _)| *key == "history_bytes").unwrap().1;
        let default = Size(BudgetLimits::default().bytes);
        assert!(words.starts_with(&format!("{default}, or an eighth of --max-memory")), "{words}");
    }

    #[test]
    fn only_defaults_without_a_fixed_value_are_in_words() {
        let settings = resolve(Layers::default()).unwrap().effective;
        for (key, words) in DEFAULTS_IN_WORDS.iter().chain(&DEFAULTS_OF_OPENTELEMETRY) {
            let setting = settings.iter().find(|setting| setting.key == *key).unwrap();
            let depends_on_the_machine = ["workers", "max_memory", "history_bytes"].contains(key);
            let has_value = setting.toml.as_ref().is_some_and(|toml| toml != "[]");
            assert_eq!(has_value, depends_on_the_machine, "{key} = {words}");
        }
        assert_eq!(
            deeperhub_security::tls::ClientAuth::default(),
            deeperhub_security::tls::ClientAuth::Required
        );
    }
}
