//! `config`: checks and prints the configuration.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;
use deeperhub_node::Topic;

use crate::config::default_file::default_file;
use crate::config::effective::Settings;
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::config::options::RULE_KEY;
use crate::config::resolve::resolve;
use crate::exit::{bad_configuration, print};
use crate::serve;

/// A subcommand of `config`.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigAction {
    /// Check flags, environment and file: exit 0 if they are valid, 2 if not
    Check {
        /// Say which rule of --topic applies to this topic
        #[arg(long = "for", value_name = "TOPIC", value_parser = topic)]
        for_topic: Option<Topic<'static>>,
    },
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
        ConfigAction::Check { for_topic } => {
            layers().and_then(resolve).map(|settings| check(&settings, for_topic.as_ref()))
        }
        ConfigAction::Show => layers().and_then(resolve).map(|settings| print(&settings.show())),
        ConfigAction::Default => default_file().map(|file| print(&file)),
    };
    result.unwrap_or_else(|errors| bad_configuration(&errors))
}

/// Parses a topic.
pub(super) fn topic(text: &str) -> Result<Topic<'static>, String> {
    Topic::parse(text.to_owned()).map_err(|error| error.to_string())
}

/// Runs the preflight of a start with valid settings. Prints warnings, the result, and the rule of
/// `topic`.
fn check(settings: &Settings, topic: Option<&Topic<'_>>) -> ExitCode {
    let warnings = match serve::preflight(settings) {
        Ok(warnings) => warnings,
        Err(error) => return bad_configuration(&[error]),
    };
    let (findings, errors) = check_broker(settings);
    if !errors.is_empty() {
        return bad_configuration(&errors);
    }
    for warning in settings.warnings.iter().chain(&warnings).chain(&findings) {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    let rule = topic.map(|topic| format!("{}\n", rule_of(settings, topic))).unwrap_or_default();
    print(&format_args!("The configuration is valid.\n{rule}"))
}

/// Asks the broker of the cluster whether it does what nodes need, and whether it can keep history if
/// rules need that. Returns warnings and errors.
fn check_broker(settings: &Settings) -> (Vec<String>, Vec<ConfigError>) {
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    let Some(cluster) = &settings.node.cluster else { return (warnings, errors) };
    let keeps_history = settings.node.history.rules.keep_history();
    let check = async {
        match keeps_history {
            true => deeperhub_cluster::check_store(&cluster.broker).await,
            false => deeperhub_cluster::check_broker(&cluster.broker).await,
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let findings = match runtime {
        Ok(runtime) => match runtime.block_on(check) {
            Ok(findings) => findings,
            Err(error) => {
                let purpose = if keeps_history { "can keep history" } else { "can be used" };
                warnings.push(format!("{error}; it was not checked whether it {purpose}"));
                return (warnings, errors);
            }
        },
        Err(error) => {
            warnings
                .push(format!("the broker was not checked, because no runtime could be started: {error}"));
            return (warnings, errors);
        }
    };
    for finding in findings {
        if finding.is_error() {
            let purpose = if keeps_history { "keep history" } else { "be used" };
            errors.push(ConfigError::Conflict(format!(
                "the broker of the cluster cannot {purpose}: {finding}"
            )));
        } else {
            warnings.push(format!("the broker of the cluster may lose history: {finding}"));
        }
    }
    (warnings, errors)
}

/// Returns a sentence that names the rule of a topic, and the rule's place and origin.
fn rule_of(settings: &Settings, topic: &Topic<'_>) -> String {
    let rules = &settings.node.history.rules;
    let found = rules.find(topic).and_then(|id| Some((id, settings.rule_origins.get(id.index())?)));
    match found {
        Some((id, origin)) => {
            let (rule, number, origin) = (&rules[id], id.index() + 1, origin.label(RULE_KEY));
            format!("Topic {topic} gets rule {number} of {} ({origin}): {rule}", rules.len())
        }
        None => match rules.len() {
            0 => format!("Topic {topic} matches no rule, because there are none; no messages are kept."),
            count => format!("Topic {topic} matches none of {count} rules; no messages are kept."),
        },
    }
}
