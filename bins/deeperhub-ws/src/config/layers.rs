//! Layers of settings: flags override the environment, which overrides the file.
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
use crate::config::options::{Options, SECRET_KEYS, VARIABLE_PREFIX, flag, variable};
use crate::config::origin::SettingOrigin;

/// A setting in one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerValue {
    pub(crate) origin: SettingOrigin,
    /// One text, or several if the setting is a list.
    pub(crate) texts: Vec<OsString>,
}

/// The settings of one layer, by key.
pub(crate) type Layer = BTreeMap<String, LayerValue>;

/// The settings of all layers together.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// The values that take effect.
    pub(crate) options: Options,
    /// Origins of the values. A key that is not in the map has its default.
    pub(crate) origins: BTreeMap<String, SettingOrigin>,
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
        let mut merged = Layer::new();
        for layer in layers {
            // Overridden values are checked, too, because they would take effect without the layer
            // that overrides them.
            errors.extend(layer.iter().filter_map(|(key, given)| check(&mut parser, key, given)));
            merged.extend(layer);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let options = parser
            .try_get_matches_from_mut(merged.iter().flat_map(|(key, given)| arguments(key, &given.texts)))
            .and_then(|matches| Options::from_arg_matches(&matches))
            .map_err(|error| vec![ConfigError::Conflict(error.to_string())])?;
        let origins = merged.into_iter().map(|(key, given)| (key, given.origin)).collect();
        Ok(Self { options, origins, warnings: Vec::new() })
    }
}

fn flags_layer<'a>(flags: impl IntoIterator<Item = &'a ArgMatches>, keys: &[String]) -> Layer {
    let mut layer = Layer::new();
    for matches in flags {
        for key in keys {
            if matches.try_contains_id(key).is_ok()
                && matches.value_source(key) == Some(ValueSource::CommandLine)
                && let Some(texts) = matches.get_raw(key)
            {
                let texts = texts.map(OsStr::to_owned).collect();
                layer.insert(key.clone(), LayerValue { origin: SettingOrigin::Flag, texts });
            }
        }
    }
    layer
}

fn environment_layer(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    keys: &[String],
) -> (Layer, Vec<String>) {
    let mut layer = Layer::new();
    let mut warnings = Vec::new();
    for (name, text) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(VARIABLE_PREFIX)) else {
            continue;
        };
        let key = name[VARIABLE_PREFIX.len()..].to_ascii_lowercase();
        if keys.contains(&key) && variable(&key) == name {
            layer.insert(key, LayerValue { origin: SettingOrigin::Variable, texts: vec![text] });
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
    let given = flags.get("config").or_else(|| environment.get("config"))?;
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
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Reads the layers of a command line, an environment and the text of a file.
    fn gather(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Result<Layers, String> {
        let mut flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
        let path = std::env::temp_dir().join(format!("deeperhub-{}-{name}.toml", std::process::id()));
        if let Some(text) = file {
            std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            flags.push(format!("--config={}", path.display()));
        }
        let matches = Options::parser().try_get_matches_from(flags).unwrap();
        let environment = environment.iter().map(|(name, text)| (OsString::from(name), OsString::from(text)));
        let gathered = Layers::read([&matches], environment);
        let _ = std::fs::remove_file(&path);
        gathered.map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            lines.join("\n").replace(&path.display().to_string(), "hub.toml")
        })
    }

    #[test]
    fn flag_wins_over_variable_over_file_over_default() {
        let file = "port = 1\nhost = '::1'\nmax_connections = 5";
        let variables = [("DEEPERHUB_PORT", "2"), ("DEEPERHUB_MAX_CONNECTIONS", "6")];
        let layers = gather(&["--port=3"], &variables, Some(file)).unwrap();
        assert_eq!(layers.options.listening.port, Some(3));
        assert_eq!(layers.options.limits.max_connections, Some(6));
        assert_eq!(layers.options.listening.host, "::1".parse().ok());
        assert_eq!(layers.options.limits.rate_limit, None);
        assert_eq!(layers.origins["port"], SettingOrigin::Flag);
        assert_eq!(layers.origins["max_connections"], SettingOrigin::Variable);
        assert_eq!(layers.origins["host"].label("host").rsplit_once(':').map(|(_, line)| line), Some("2"));
        assert!(!layers.origins.contains_key("rate_limit"));
    }

    #[test]
    fn the_subcommands_flag_wins_over_the_one_before_it() {
        let before = Options::parser().get_matches_from(["--port=1", "--workers=3"]);
        let after = Options::parser().get_matches_from(["--port=2"]);
        let layers = Layers::read([&before, &after], []).unwrap();
        assert_eq!((layers.options.listening.port, layers.options.general.workers), (Some(2), Some(3)));
    }

    #[test]
    fn the_file_may_be_named_by_the_environment() {
        let errors = gather(&[], &[("DEEPERHUB_CONFIG", "/nowhere/hub.toml")], None).unwrap_err();
        assert!(
            errors.starts_with("cannot read config file /nowhere/hub.toml (from DEEPERHUB_CONFIG): "),
            "{errors}"
        );
    }

    #[test]
    fn lists_are_comma_separated_in_variables_and_arrays_in_files() {
        let variables = [("DEEPERHUB_ALLOWED_ORIGIN", "https://a.example,https://b.example")];
        let from_variable = gather(&[], &variables, None).unwrap().options.web_pages.allowed_origin;
        let file = "allowed_origin = ['https://a.example', \"https://b.example\"]";
        let from_file = gather(&[], &[], Some(file)).unwrap().options.web_pages.allowed_origin;
        let flags = ["--allowed-origin=https://a.example", "--allowed-origin", "https://b.example"];
        let from_flags = gather(&flags, &[], None).unwrap().options.web_pages.allowed_origin;
        assert_eq!(from_variable.as_ref().map(Vec::len), Some(2));
        assert_eq!(from_variable, from_file);
        assert_eq!(from_variable, from_flags);
    }

    #[test]
    fn every_invalid_value_is_reported_with_its_key_and_what_is_expected() {
        let file = "port = 'many'\nping_interval = 25\nworkers = [1, 2]";
        let variables = [("DEEPERHUB_LOG_LEVEL", "loud"), ("DEEPERHUB_API_LISTEN", "")];
        let errors = gather(&["--port=1"], &variables, Some(file)).unwrap_err();
        let expected = "\
            invalid value '25' for ping_interval in hub.toml:2: expected a duration such as 500ms, 10s, 2m or 1h, at most 24h\n\
            invalid value 'many' for port in hub.toml:1: expected a whole number from 0 to 65535\n\
            invalid value '1,2' for workers in hub.toml:3: expected one value, not a list\n\
            invalid value '' for DEEPERHUB_API_LISTEN: expected an address and a port, such as 127.0.0.1:8081 or [::1]:8081, or off\n\
            invalid value 'loud' for DEEPERHUB_LOG_LEVEL: expected one of error, warn, info, debug, trace";
        assert_eq!(errors, expected);
    }

    #[test]
    fn secrets_are_not_shown_when_they_have_the_wrong_form() {
        let file = "api_key = ['hunter2', 'x']\ncluster = ['nats://me:hunter2@h', 'x']";
        let errors = gather(&[], &[], Some(file)).unwrap_err();
        assert!(errors.contains("api_key") && errors.contains("cluster"), "{errors}");
        assert!(!errors.contains("hunter2"), "{errors}");
    }

    #[test]
    fn unknown_variables_are_warned_about_with_a_suggestion() {
        let variables = [
            ("DEEPERHUB_MAX_CONECTIONS", "5"),
            ("DEEPERHUB_WS_SERVICE_HOST", "10.0.0.1"),
            ("DEEPERHUB_WS_PORT", "tcp://10.0.0.1:8080"),
            ("DEEPERHUB_WS_PORT_8080_TCP_PROTO", "tcp"),
            ("DEEPERHUB_port", "5"),
            ("DEEPERHUB_COLOUR", "red"),
            ("PORT", "5"),
        ];
        let layers = gather(&[], &variables, None).unwrap();
        assert_eq!(format!("{:?}", layers.options), format!("{:?}", Options::default()));
        assert_eq!(
            layers.warnings,
            [
                "unknown variable DEEPERHUB_COLOUR: the program does not read it",
                "unknown variable DEEPERHUB_MAX_CONECTIONS: did you mean DEEPERHUB_MAX_CONNECTIONS?",
                "unknown variable DEEPERHUB_port: did you mean DEEPERHUB_PORT?",
            ]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_unicode_is_refused() {
        use std::os::unix::ffi::OsStringExt;

        let variable = (OsString::from("DEEPERHUB_PORT"), OsString::from_vec(vec![b'8', 0xFF]));
        let errors = Layers::read([], [variable]).unwrap_err();
        assert!(errors[0].to_string().contains("DEEPERHUB_PORT"), "{errors:?}");
    }
}
