//! Errors of the configuration. A message about a value names the setting as the operator wrote it,
//! the value, and the expected values.

use std::path::PathBuf;

use crate::config::origin::SettingOrigin;

/// An error in flags, environment or file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read config file {} (from {origin}): {source}", path.display())]
    Unreadable { path: PathBuf, origin: SettingOrigin, source: std::io::Error },

    /// The file is not TOML.
    #[error("{}:{line}: not TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },

    /// The file has an unknown key.
    #[error("{}:{line}: unknown key '{key}'; {hint}", path.display())]
    UnknownKey { path: PathBuf, line: usize, key: String, hint: String },

    /// A rule for topics in the file is invalid. `rule` is its place, such as `[[topics]] 2 (a.>)`.
    #[error("{}:{line}: {rule}: {reason}", path.display())]
    InvalidRule { path: PathBuf, line: usize, rule: String, reason: String },

    /// A value is invalid.
    #[error("invalid value '{value}' for {key}: {expected}", key = origin.name_of(key))]
    Invalid { key: String, origin: SettingOrigin, value: String, expected: String },

    /// A secret value is invalid; the message does not show it.
    #[error("invalid value for {key} (not shown, as it is secret): {expected}", key = origin.name_of(key))]
    InvalidSecret { key: String, origin: SettingOrigin, expected: String },

    /// Settings that are valid alone exclude each other, or one needs another.
    #[error("{0}")]
    Conflict(String),
}

/// Returns the candidate that is most similar to `typed`, if it is similar enough to be meant.
pub(crate) fn similar<'a>(typed: &str, candidates: &'a [String]) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase().replace('-', "_");
    candidates
        .iter()
        .map(|candidate| (strsim::jaro_winkler(&typed, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.85)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::Options;

    #[test]
    fn typing_errors_are_recognised_and_other_words_are_not() {
        let keys = Options::keys();
        for (typed, expected) in [
            ("max_conections", Some("max_connections")),
            ("max-connections", Some("max_connections")),
            ("Port", Some("port")),
            ("prot", Some("port")),
            ("allowed_origins", Some("allowed_origin")),
            ("hots", Some("host")),
            ("database", None),
            ("x", None),
        ] {
            assert_eq!(similar(typed, &keys), expected, "{typed}");
        }
    }
}
