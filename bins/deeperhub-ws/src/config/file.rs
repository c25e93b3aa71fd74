//! The TOML file as a layer of settings.

use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::error::{ConfigError, similar};
use crate::config::layers::{Layer, LayerValue};
use crate::config::options::RULE_KEY;
use crate::config::origin::SettingOrigin;
use crate::config::rule_tables;

/// Reads a file. Returns its valid settings and appends its errors to `errors`.
pub(crate) fn read(
    path: &Path,
    origin: &SettingOrigin,
    keys: &[String],
    errors: &mut Vec<ConfigError>,
) -> Layer {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path, keys, errors),
        Err(source) => {
            errors.push(ConfigError::Unreadable { path: path.to_owned(), origin: origin.clone(), source });
            Layer::default()
        }
    }
}

/// A file's path and text, to name places in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    /// Returns the line at which a span starts, counted from 1.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
    }

    /// Returns the origin of a value that starts with the span.
    pub(super) fn origin(&self, span: &Range<usize>) -> SettingOrigin {
        SettingOrigin::File { path: self.path.to_owned(), line: self.line(span) }
    }

    /// Returns the text of a span.
    pub(super) fn text_of(&self, span: Range<usize>) -> &str {
        self.text.get(span).unwrap_or_default()
    }
}

/// Parses the text of a file.
pub(super) fn parse(text: &str, path: &Path, keys: &[String], errors: &mut Vec<ConfigError>) -> Layer {
    // Some editors start a file with a byte order mark, which is not TOML.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let source = Source { path, text };
    let mut layer = Layer::default();
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    errors.extend(syntax_errors.iter().map(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: source.line(&error.span().unwrap_or_default()),
        message: error.message().lines().collect::<Vec<_>>().join("; "),
    }));
    if !syntax_errors.is_empty() {
        return layer;
    }
    for (key, value) in in_order(table.get_ref()) {
        let name = key.get_ref().as_ref();
        if name == rule_tables::KEY {
            for rule in rule_tables::read(&source, value, keys, errors) {
                layer.insert(RULE_KEY, rule);
            }
            continue;
        }
        // `config` names the file, so it is not a key of the file.
        if name == "config" || !keys.iter().any(|known| known == name) {
            let hint = hint(name, value, keys);
            let line = source.line(&key.span());
            errors.push(ConfigError::UnknownKey { path: path.to_owned(), line, key: name.to_owned(), hint });
            continue;
        }
        let origin = source.origin(&key.span());
        match texts(value) {
            Some(texts) if name == RULE_KEY => {
                for (rule, text) in items(value).iter().zip(texts) {
                    layer.insert(
                        RULE_KEY,
                        LayerValue { origin: source.origin(&rule.span()), texts: vec![text] },
                    );
                }
            }
            Some(texts) => layer.insert(name, LayerValue { origin, texts }),
            None => errors.push(ConfigError::Invalid {
                key: name.to_owned(),
                origin,
                value: source.text_of(value.span()).to_owned(),
                expected: expected_instead_of(name, value),
            }),
        }
    }
    layer
}

/// Returns the entries of a table in the order of the file.
pub(super) fn in_order<'t, 'f>(
    table: &'t DeTable<'f>,
) -> Vec<(&'t Spanned<std::borrow::Cow<'f, str>>, &'t Spanned<DeValue<'f>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Returns a hint for an unknown key.
fn hint(name: &str, value: &Spanned<DeValue<'_>>, keys: &[String]) -> String {
    let mut keys = keys.get(1..).unwrap_or_default().to_vec();
    keys.push(rule_tables::KEY.to_owned());
    if name == "config" {
        "a file cannot name another; use --config or DEEPERHUB_CONFIG".to_owned()
    } else if value.get_ref().is_table() {
        format!("there are no sections but [[{}]]; all other keys are at the top level", rule_tables::KEY)
    } else if let Some(similar) = similar(name, &keys) {
        format!("did you mean '{similar}'?")
    } else {
        format!("expected one of {}", keys.join(", "))
    }
}

/// Returns the items of a list, or the value itself if it is not a list.
fn items<'v, 'f>(value: &'v Spanned<DeValue<'f>>) -> &'v [Spanned<DeValue<'f>>] {
    match value.get_ref() {
        DeValue::Array(items) => items,
        _ => std::slice::from_ref(value),
    }
}

/// Returns the texts that a flag would have for a value. Returns `None` for tables and nested
/// lists, which a flag cannot express.
fn texts(value: &Spanned<DeValue<'_>>) -> Option<Vec<OsString>> {
    items(value).iter().map(|item| text(item).map(OsString::from)).collect()
}

/// Returns the text that a flag would have for a value, or `None` for a list or a table.
pub(super) fn text(value: &Spanned<DeValue<'_>>) -> Option<String> {
    Some(match value.get_ref() {
        DeValue::Array(_) | DeValue::Table(_) => return None,
        DeValue::String(text) => text.clone().into_owned(),
        DeValue::Integer(number) => {
            let decimal =
                i64::from_str_radix(number.as_str(), number.radix()).map(|number| number.to_string());
            decimal.unwrap_or_else(|_| number.as_str().to_owned())
        }
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(switch) => switch.to_string(),
        DeValue::Datetime(time) => time.to_string(),
    })
}

/// Describes the expected value of a setting that has a table, or a list of lists or tables.
fn expected_instead_of(name: &str, value: &Spanned<DeValue<'_>>) -> String {
    if name == RULE_KEY {
        return format!(
            "expected texts such as \"chat.>: history=1000\"; tables are written [[{}]]",
            rule_tables::KEY
        );
    }
    let kind = if value.get_ref().is_table() { "table" } else { "list of lists or tables" };
    format!("expected a number, a string or a list of them, not a {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::Options;

    /// Checks the layer and the errors of a file's text. The layer is given as `key=text,text` for
    /// each key.
    fn check(text: &str, expected: &[&str], expected_problems: &[&str]) {
        let mut errors = Vec::new();
        let layer = parse(text, Path::new("hub.toml"), &Options::keys(), &mut errors);
        let found: Vec<_> = layer
            .iter()
            .map(|(key, given)| {
                let texts: Vec<_> = given.texts.iter().map(|text| text.to_string_lossy()).collect();
                format!("{key}={}", texts.join(","))
            })
            .collect();
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{text}");
        assert_eq!(errors.len(), expected_problems.len(), "{errors:?}");
        for (problem, expected) in errors.iter().zip(expected_problems) {
            assert!(problem.starts_with(expected), "{problem}");
        }
    }

    #[test]
    fn values_become_texts() {
        check("port = 0x10", &["port=16"], &[]);
        check("max_connections = 10_000", &["max_connections=10000"], &[]);
        check("port = -1", &["port=-1"], &[]);
        check("port = 1.5", &["port=1.5"], &[]);
        check("host = '::1' # ours", &["host=::1"], &[]);
        check("path = ['/a', '/b']", &["path=/a,/b"], &[]);
        check("path = []", &["path="], &[]);
        check("", &[], &[]);
        check("\u{feff}port = 1\r\nhost = '::1'\r\n", &["host=::1", "port=1"], &[]);
        check("port = 1\n\u{feff}host = '::1'", &[], &["hub.toml:2: not TOML: "]);
    }

    #[test]
    fn unknown_keys_are_reported_with_line_and_suggestion() {
        check(
            "port = 1\n\nmax-connections = 5",
            &["port=1"],
            &["hub.toml:3: unknown key 'max-connections'; did you mean 'max_connections'?"],
        );
        check("colour = 1", &[], &["hub.toml:1: unknown key 'colour'; expected one of workers, io_uring, "]);
        check(
            "[server]\nmax_connections = 5",
            &[],
            &[
                "hub.toml:1: unknown key 'server'; there are no sections but [[topics]]; all other keys are at",
            ],
        );
        check(
            "config = 'other.toml'",
            &[],
            &["hub.toml:1: unknown key 'config'; a file cannot name another"],
        );
    }

    #[test]
    fn invalid_toml_is_reported_with_its_line() {
        check("port = 1\nhost = 'a", &[], &["hub.toml:2: not TOML: "]);
        check("port = 1\nport = 2", &[], &["hub.toml:2: not TOML: duplicate key"]);
        check("port", &[], &["hub.toml:1: not TOML: "]);
    }

    #[test]
    fn a_table_is_no_value() {
        check(
            "port = { a = 1 }",
            &[],
            &["invalid value '{ a = 1 }' for port in hub.toml:1: expected a number"],
        );
        check(
            "topic = [{ match = 'a' }]",
            &[],
            &["invalid value '[{ match = 'a' }]' for topic in hub.toml:1: expected texts such as \"chat.>: "],
        );
        check(
            "path = [['/a']]",
            &[],
            &["invalid value '[['/a']]' for path in hub.toml:1: expected a number"],
        );
    }
}
