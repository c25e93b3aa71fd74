//! Layers of settings: flags override the environment, which overrides the file. Rules for topics
//! add up instead: those of flags come first, then those of the environment, then those of the file.
//!
//! A layer maps keys to texts. The texts of all layers are parsed with the parser that clap derives
//! from [`Options`]. A value such as `10s` thus has the same meaning in each layer, and an invalid
//! value has the same error.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, FromArgMatches};

use crate::config::error::{ConfigError, similar};
use crate::config::file;
use crate::config::options::{Options, RULE_KEY, SECRET_KEYS, VARIABLE_PREFIX, flag, variable};
use crate::config::origin::SettingOrigin;

/// A setting in one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerValue {
    pub(crate) origin: SettingOrigin,
    /// One text, or several if the setting is a list.
    pub(crate) texts: Vec<OsString>,
}

/// The settings of one layer.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    /// Settings by key, without the rules.
    values: BTreeMap<String, LayerValue>,
    /// Rules for topics, each with its own origin and one text.
    rules: Vec<LayerValue>,
}

impl Layer {
    /// Adds a setting. Replaces an earlier value of the same key, but adds to earlier rules.
    pub(crate) fn insert(&mut self, key: &str, value: LayerValue) {
        if key == RULE_KEY {
            let LayerValue { origin, texts } = value;
            let rules =
                texts.into_iter().map(|text| LayerValue { origin: origin.clone(), texts: vec![text] });
            self.rules.extend(rules);
        } else {
            self.values.insert(key.to_owned(), value);
        }
    }

    /// Returns the settings with their keys. Each rule is a setting of its own.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &LayerValue)> {
        let values = self.values.iter().map(|(key, value)| (key.as_str(), value));
        values.chain(self.rules.iter().map(|rule| (RULE_KEY, rule)))
    }

    /// Adds a layer that overrides this one.
    fn override_with(&mut self, layer: Self) {
        self.values.extend(layer.values);
        // The first rule that matches a topic counts, so the rules that override others come first.
        self.rules.splice(0..0, layer.rules);
    }
}

/// The settings of all layers together.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// The values that take effect.
    pub(crate) options: Options,
    /// Origins of the values. A key that is not in the map has its default.
    pub(crate) origins: BTreeMap<String, SettingOrigin>,
    /// Origins of the rules for topics, in the order of the rules.
    pub(crate) rule_origins: Vec<SettingOrigin>,
    /// Warnings about probable mistakes, such as unknown variables.
    pub(crate) warnings: Vec<String>,
}

impl Layers {
    /// Reads the layers. `flags` contains the matches of a command and its subcommands, in this
    /// order; `environment` is the whole environment.
    ///
    /// # Errors
    ///
    /// If the environment or the file is invalid. Returns all errors, not only the first. Invalid
    /// flags are not among them, because clap rejects these before.
    pub(crate) fn read<'a>(
        flags: impl IntoIterator<Item = &'a ArgMatches>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let keys = Options::keys();
        let mut errors = Vec::new();
        let from_flags = flags_layer(flags, &keys);
        let (from_environment, warnings) = environment_layer(environment, &keys);
        let from_file = config_file(&from_flags, &from_environment)
            .map(|(path, origin)| file::read(&path, &origin, &keys, &mut errors))
            .unwrap_or_default();
        let layers = Self::merge([from_file, from_environment, from_flags], errors)?;
        Ok(Self { warnings, ..layers })
    }

    /// Merges layers; later ones override earlier ones. `errors` contains the errors found so far.
    fn merge(
        layers: impl IntoIterator<Item = Layer>,
        mut errors: Vec<ConfigError>,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut parser = Options::parser();
        let mut merged = Layer::default();
        for layer in layers {
            // Overridden values are checked, too, because they would take effect without the layer
            // that overrides them.
            errors.extend(layer.iter().filter_map(|(key, given)| check(&mut parser, key, given)));
            merged.override_with(layer);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let options = parser
            .try_get_matches_from_mut(merged.iter().flat_map(|(key, given)| arguments(key, &given.texts)))
            .and_then(|matches| Options::from_arg_matches(&matches))
            .map_err(|error| vec![ConfigError::Conflict(error.to_string())])?;
        let Layer { values, rules } = merged;
        let origins = values.into_iter().map(|(key, given)| (key, given.origin)).collect();
        let rule_origins = rules.into_iter().map(|rule| rule.origin).collect();
        Ok(Self { options, origins, rule_origins, warnings: Vec::new() })
    }
}

fn flags_layer<'a>(flags: impl IntoIterator<Item = &'a ArgMatches>, keys: &[String]) -> Layer {
    let mut layer = Layer::default();
    for matches in flags {
        for key in keys {
            if matches.try_contains_id(key).is_ok()
                && matches.value_source(key) == Some(ValueSource::CommandLine)
                && let Some(texts) = matches.get_raw(key)
            {
                let texts = texts.map(OsStr::to_owned).collect();
                layer.insert(key, LayerValue { origin: SettingOrigin::Flag, texts });
            }
        }
    }
    layer
}

fn environment_layer(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    keys: &[String],
) -> (Layer, Vec<String>) {
    let mut layer = Layer::default();
    let mut warnings = Vec::new();
    for (name, text) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(VARIABLE_PREFIX)) else {
            continue;
        };
        let key = name[VARIABLE_PREFIX.len()..].to_ascii_lowercase();
        if keys.contains(&key) && variable(&key) == name {
            let texts = if key == RULE_KEY { split_rules(text) } else { vec![text] };
            layer.insert(&key, LayerValue { origin: SettingOrigin::Variable, texts });
        } else if !is_from_kubernetes(name, &text) {
            let hint = similar(&key, keys).map_or_else(
                || "the program does not read it".to_owned(),
                |similar| format!("did you mean {}?", variable(similar)),
            );
            warnings.push(format!("unknown variable {name}: {hint}"));
        }
    }
    warnings.sort();
    (layer, warnings)
}

/// Splits the rules of a variable. Flags and files have one rule in each text, because the pattern of
/// a rule can have a comma.
fn split_rules(text: OsString) -> Vec<OsString> {
    match text.to_str() {
        Some(text) => text.split(',').map(OsString::from).collect(),
        // The parser reports that it is not Unicode.
        None => vec![text],
    }
}

/// Returns `true` for a variable that Kubernetes sets in every container for a service whose name
/// starts with `deeperhub`, such as `DEEPERHUB_WS_SERVICE_HOST`.
fn is_from_kubernetes(name: &str, text: &OsStr) -> bool {
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()))
        || text.as_encoded_bytes().starts_with(b"tcp://")
}

/// Returns the path of the file, and the origin of the path. Returns `None` if no file is set.
fn config_file(flags: &Layer, environment: &Layer) -> Option<(PathBuf, SettingOrigin)> {
    let given = flags.values.get("config").or_else(|| environment.values.get("config"))?;
    Some((given.texts.last().map(PathBuf::from)?, given.origin.clone()))
}

/// Parses one value. Returns its error, if any.
fn check(parser: &mut Command, key: &str, given: &LayerValue) -> Option<ConfigError> {
    let error = parser.try_get_matches_from_mut(arguments(key, &given.texts)).err()?;
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.clone(),
        _ => given.texts.join(OsStr::new(",")).to_string_lossy().into_owned(),
    };
    let expected = match (error.get(ContextKind::ValidValue), error.source()) {
        (Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => {
            format!("expected one of {}", valid.join(", "))
        }
        (_, Some(reason)) => reason.to_string(),
        _ if given.texts.len() > 1 => "expected one value, not a list".to_owned(),
        _ if value.is_empty() => "expected a value".to_owned(),
        _ => error.kind().to_string(),
    };
    let (key, origin) = (key.to_owned(), given.origin.clone());
    Some(if SECRET_KEYS.contains(&&*key) {
        ConfigError::InvalidSecret { key, origin, expected }
    } else {
        ConfigError::Invalid { key, origin, value, expected }
    })
}

/// Returns the command-line arguments that set `key` to `texts`.
fn arguments(key: &str, texts: &[OsString]) -> Vec<OsString> {
    let argument = |text: &OsString| {
        let mut argument = OsString::from(format!("{}=", flag(key)));
        argument.push(text);
        argument
    };
    texts.iter().map(argument).collect()
}

#[cfg(test)]
mod tests;
