//! Rules for topics as tables of the file: each `[[topics]]` is a rule.

use std::ffi::OsString;

use deeperhub_node::history::{PolicySettings, Rule, RuleError, Subscription};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::error::{ConfigError, similar};
use crate::config::file::{Source, in_order, text};
use crate::config::layers::LayerValue;
use crate::exit::with_causes;

/// Key of the tables.
pub(super) const KEY: &str = "topics";

/// Key of a table for the topic or pattern of its rule.
const MATCH: &str = "match";

/// Maximum length of an invalid value in an error, in characters.
const MAX_EXCERPT: usize = 64;

/// Reads the tables. Returns each valid rule in its text form, and appends errors to `errors`.
/// `settings` are the keys of all settings, to find those that belong above the tables.
pub(super) fn read(
    source: &Source<'_>,
    value: &Spanned<DeValue<'_>>,
    settings: &[String],
    errors: &mut Vec<ConfigError>,
) -> Vec<LayerValue> {
    let mut invalid = |value: &Spanned<DeValue<'_>>, expected: &str| {
        errors.push(ConfigError::Invalid {
            key: KEY.to_owned(),
            origin: source.origin(&value.span()),
            value: excerpt(source, value),
            expected: expected.to_owned(),
        });
    };
    let mut tables = Vec::new();
    match value.get_ref() {
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                match item.get_ref() {
                    DeValue::Table(table) => tables.push((index + 1, item, table)),
                    _ => {
                        invalid(item, "expected tables, written [[topics]]; texts belong into the key topic")
                    }
                }
            }
        }
        DeValue::Table(_) => {
            invalid(value, "expected two brackets, [[topics]], because each rule is a table")
        }
        _ => invalid(value, "expected tables, written [[topics]]; texts belong into the key topic"),
    }
    let mut rules = Vec::new();
    for (number, item, table) in tables {
        let mut reader = TableReader { source, settings, number, pattern: None, errors: &mut *errors };
        if let Some(rule) = reader.rule(item, table) {
            let text = OsString::from(rule.to_string());
            rules.push(LayerValue { origin: source.origin(&item.span()), texts: vec![text] });
        }
    }
    rules
}

/// Reader of one table.
struct TableReader<'a> {
    source: &'a Source<'a>,
    settings: &'a [String],
    /// Place of the table among the tables of the file, counted from 1.
    number: usize,
    /// The rule's pattern, once it is known to be valid.
    pattern: Option<Subscription<'static>>,
    errors: &'a mut Vec<ConfigError>,
}

impl TableReader<'_> {
    /// Returns the rule. Returns `None` if it is invalid, and reports each of its errors.
    fn rule(&mut self, item: &Spanned<DeValue<'_>>, table: &DeTable<'_>) -> Option<Rule> {
        let errors_before = self.errors.len();
        let header = self.source.line(&item.span());
        let entries = in_order(table);
        // The pattern comes first, because the other errors name it.
        match entries.iter().find(|(key, _)| key.get_ref() == MATCH) {
            Some((key, value)) => self.read_pattern(self.source.line(&key.span()), value),
            None => self.invalid(
                header,
                format!("`{MATCH}` is missing; add a topic or pattern, such as {MATCH} = \"chat.>\""),
            ),
        }
        let mut policy = PolicySettings::default();
        for (key, value) in entries.iter().filter(|(key, _)| key.get_ref() != MATCH) {
            let (line, key) = (self.source.line(&key.span()), key.get_ref().as_ref());
            if !PolicySettings::keys().any(|known| known == key) {
                let (path, hint) = (self.source.path.to_owned(), self.hint(key));
                self.errors.push(ConfigError::UnknownKey { path, line, key: key.to_owned(), hint });
            } else if let Some(text) = text(value) {
                if let Err(error) = policy.set(key, &text) {
                    self.invalid(line, with_causes(&error));
                }
            } else {
                let value = excerpt(self.source, value);
                self.invalid(line, format!("`{key}` is `{value}`; expected one number or string"));
            }
        }
        if self.errors.len() > errors_before {
            return None;
        }
        match policy.resolve() {
            Ok(policy) => Some(Rule::new(self.pattern.take()?, policy)),
            Err(error) => {
                // The line of the key that the error is about.
                let about = match &error {
                    RuleError::Value { key, .. } | RuleError::NeedsHistory { key } => Some(*key),
                    _ => None,
                };
                let key = entries.iter().find(|(key, _)| about == Some(key.get_ref().as_ref()));
                let line = key.map_or(header, |(key, _)| self.source.line(&key.span()));
                self.invalid(line, with_causes(&error));
                None
            }
        }
    }

    fn read_pattern(&mut self, line: usize, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::String(text) => match Rule::parse_pattern(text) {
                Ok(pattern) => self.pattern = Some(pattern),
                Err(error) => self.invalid(line, format!("`{MATCH}`: {}", with_causes(&error))),
            },
            _ => {
                let value = excerpt(self.source, value);
                self.invalid(
                    line,
                    format!(
                        "`{MATCH}` is `{value}`; expected a topic or pattern in quotes, such as \"chat.>\""
                    ),
                );
            }
        }
    }

    /// Returns a hint for an unknown key.
    fn hint(&self, key: &str) -> String {
        let keys: Vec<String> =
            std::iter::once(MATCH).chain(PolicySettings::keys()).map(str::to_owned).collect();
        if self.settings.iter().any(|setting| setting == key) {
            format!("it is not part of a rule; move it above the first [[{KEY}]]")
        } else if let Some(similar) = similar(key, &keys) {
            format!("did you mean '{similar}'?")
        } else {
            format!("a rule has the keys {}", keys.join(", "))
        }
    }

    fn invalid(&mut self, line: usize, reason: String) {
        let rule = match &self.pattern {
            Some(pattern) => format!("[[{KEY}]] {} ({pattern})", self.number),
            None => format!("[[{KEY}]] {}", self.number),
        };
        self.errors.push(ConfigError::InvalidRule { path: self.source.path.to_owned(), line, rule, reason });
    }
}

/// Returns the start of a value's text on one line.
fn excerpt(source: &Source<'_>, value: &Spanned<DeValue<'_>>) -> String {
    let words: Vec<_> = source.text_of(value.span()).split_whitespace().collect();
    let text = words.join(" ");
    let mut excerpt: String = text.chars().take(MAX_EXCERPT).collect();
    if text.chars().nth(MAX_EXCERPT).is_some() {
        excerpt.push('…');
    }
    excerpt
}

#[cfg(test)]
mod tests;
