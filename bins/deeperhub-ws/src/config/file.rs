//! The TOML file as a layer of settings.

use std::ffi::OsString;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::error::{ConfigError, similar};
use crate::config::layers::{Layer, LayerValue};
use crate::config::origin::SettingOrigin;

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
            Layer::new()
        }
    }
}

/// Parses the text of a file.
fn parse(text: &str, path: &Path, keys: &[String], errors: &mut Vec<ConfigError>) -> Layer {
    // Some editors start a file with a byte order mark, which is not TOML.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut layer = Layer::new();
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    errors.extend(syntax_errors.iter().map(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_at(text, error.span().map_or(0, |span| span.start)),
        message: error.message().lines().collect::<Vec<_>>().join("; "),
    }));
    if !syntax_errors.is_empty() {
        return layer;
    }
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let line = line_at(text, key.span().start);
        let name = key.get_ref().as_ref();
        // `config` names the file, so it is not a key of the file.
        if name == "config" || !keys.iter().any(|known| known == name) {
            let hint = hint(name, value, keys);
            errors.push(ConfigError::UnknownKey { path: path.to_owned(), line, key: name.to_owned(), hint });
            continue;
        }
        let origin = SettingOrigin::File { path: path.to_owned(), line };
        match texts(value) {
            Some(texts) => {
                layer.insert(name.to_owned(), LayerValue { origin, texts });
            }
            None => errors.push(ConfigError::Invalid {
                key: name.to_owned(),
                origin,
                value: text.get(value.span()).unwrap_or_default().to_owned(),
                expected: format!("expected a number, a string or a list of them, not a {}", kind(value)),
            }),
        }
    }
    layer
}

/// Returns a hint for an unknown key.
fn hint(name: &str, value: &Spanned<DeValue<'_>>, keys: &[String]) -> String {
    if name == "config" {
        "a file cannot name another; use --config or DEEPERHUB_CONFIG".to_owned()
    } else if value.get_ref().is_table() {
        "there are no sections; all keys are at the top level".to_owned()
    } else if let Some(similar) = similar(name, keys) {
        format!("did you mean '{similar}'?")
    } else {
        format!("expected one of {}", keys[1..].join(", "))
    }
}

/// Returns the texts that a flag would have for a value. Returns `None` for tables and nested
/// lists, which a flag cannot express.
fn texts(value: &Spanned<DeValue<'_>>) -> Option<Vec<OsString>> {
    match value.get_ref() {
        DeValue::Array(items) => items
            .iter()
            .map(|item| if item.get_ref().is_array() { None } else { texts(item)?.into_iter().next() })
            .collect(),
        DeValue::Table(_) => None,
        DeValue::String(text) => Some(vec![OsString::from(text.as_ref())]),
        DeValue::Integer(number) => {
            let decimal =
                i64::from_str_radix(number.as_str(), number.radix()).map(|number| number.to_string());
            Some(vec![OsString::from(decimal.unwrap_or_else(|_| number.as_str().to_owned()))])
        }
        DeValue::Float(number) => Some(vec![OsString::from(number.as_str())]),
        DeValue::Boolean(switch) => Some(vec![OsString::from(switch.to_string())]),
        DeValue::Datetime(time) => Some(vec![OsString::from(time.to_string())]),
    }
}

fn kind(value: &Spanned<DeValue<'_>>) -> &'static str {
    if value.get_ref().is_table() { "table" } else { "list of lists or tables" }
}

/// Returns the line of an offset in a text, counted from 1.
fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
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
            &["hub.toml:1: unknown key 'server'; there are no sections; all keys are at the top level"],
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
            "path = [['/a']]",
            &[],
            &["invalid value '[['/a']]' for path in hub.toml:1: expected a number"],
        );
    }
}
