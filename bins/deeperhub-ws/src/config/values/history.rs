//! Values of settings for topics with history.

use deeperhub_args::{Size, Time};
use deeperhub_node::history::{Policy, Rule};

use super::{ToToml, plain, quoted};
use crate::exit::with_causes;

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
    fn sizes_with_a_unit_are_strings_and_others_are_numbers() {
        assert_eq!(Size(256 << 20).to_toml(), r#""256MiB""#);
        assert_eq!(Size(1000).to_toml(), "1000");
    }
}
