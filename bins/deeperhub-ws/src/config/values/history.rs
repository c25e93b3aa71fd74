//! Values of settings for topics with history.

use std::fmt;
use std::time::Duration;

use deeperhub_args::{Size, Time};
use deeperhub_node::history::{Policy, Rule};

use super::{ToToml, plain, quoted};
use crate::exit::with_causes;

/// Place where the history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreKind {
    /// Memory alone: the history ends with the process.
    Memory,
    /// A disk, beside the memory.
    Disk,
}

/// Place where NATS JetStream keeps the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HistoryStorage {
    /// The memory of its servers.
    Memory,
    /// Their files.
    File,
}

/// Shortest time between two writes to the disk.
const MIN_SYNC: Duration = Duration::from_millis(10);

/// Time within which messages are on the disk for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HistorySync {
    /// As soon as possible.
    Always,
    Within(Time),
}

/// Parses `always` or a time.
pub(crate) fn history_sync(text: &str) -> Result<HistorySync, String> {
    if text == "always" {
        return Ok(HistorySync::Always);
    }
    let time = text.parse::<Time>().ok().filter(|time| time.0 >= MIN_SYNC);
    time.map(HistorySync::Within)
        .ok_or_else(|| format!("expected a time from {} such as 100ms or 1s, or always", Time(MIN_SYNC)))
}

impl fmt::Display for HistorySync {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => formatter.write_str("always"),
            Self::Within(time) => time.fmt(formatter),
        }
    }
}

impl ToToml for HistorySync {
    fn to_toml(&self) -> String {
        quoted(self)
    }
}

/// Parses a rule for topics.
pub(crate) fn topic_rule(text: &str) -> Result<Rule, String> {
    text.parse::<Rule>().map_err(|error| with_causes(&error))
}

/// Parses the time after which a topic is forgotten: at most as long as messages may be kept, and
/// whole seconds, because fractions would be ignored.
pub(crate) fn forget_time(text: &str) -> Result<Time, String> {
    let time = Time::parse_up_to(text, Policy::MAX_TTL).filter(|time| time.0.subsec_nanos() == 0);
    time.ok_or_else(|| {
        format!("expected whole seconds such as 90s, 10m or 1h, at most {}", Time(Policy::MAX_TTL))
    })
}

impl ToToml for Rule {
    fn to_toml(&self) -> String {
        quoted(self)
    }
}

impl ToToml for Size {
    fn to_toml(&self) -> String {
        let text = self.to_string();
        if text.bytes().all(|byte| byte.is_ascii_digit()) { plain(text) } else { quoted(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_toml_that_parses_to_the_same_rule() {
        for text in ["chat.>: history=1000", "say.\"hi\": history=5 delivery=latest", "a,b: history=0"] {
            let toml: toml::Table =
                format!("rule = {}", topic_rule(text).unwrap().to_toml()).parse().unwrap();
            assert_eq!(toml["rule"].as_str(), Some(text));
        }
    }

    #[test]
    fn a_rule_with_an_invalid_pattern_says_what_is_wrong_with_it() {
        let error = topic_rule("chat..a: history=1").unwrap_err();
        assert!(
            error.starts_with("`chat..a` is not a topic or pattern: topic has an empty level"),
            "{error}"
        );
    }

    #[test]
    fn topics_are_forgotten_after_whole_seconds() {
        for (text, expected) in [
            ("0", Some("0s")),
            ("2000ms", Some("2s")),
            ("25h", Some("25h")),
            ("168h", Some("168h")),
            ("169h", None),
            ("1500ms", None),
            ("3600", None),
            ("-1s", None),
            ("", None),
        ] {
            let time = forget_time(text).ok().map(|time| time.to_string());
            assert_eq!(time.as_deref(), expected, "{text}");
        }
        assert!(forget_time("1d").unwrap_err().ends_with("at most 168h"));
    }

    #[test]
    fn messages_are_synced_within_a_time_or_at_once() {
        for (text, expected) in [
            ("always", Some("always")),
            ("10ms", Some("10ms")),
            ("1s", Some("1s")),
            ("9ms", None),
            ("0", None),
            ("Always", None),
            ("100", None),
            ("", None),
        ] {
            let sync = history_sync(text).ok().map(|sync| sync.to_string());
            assert_eq!(sync.as_deref(), expected, "{text}");
        }
        assert_eq!(
            history_sync("1ms"),
            Err("expected a time from 10ms such as 100ms or 1s, or always".into())
        );
    }

    #[test]
    fn sizes_with_a_unit_are_strings_and_others_are_numbers() {
        assert_eq!(Size(256 << 20).to_toml(), r#""256MiB""#);
        assert_eq!(Size(1000).to_toml(), "1000");
    }
}
