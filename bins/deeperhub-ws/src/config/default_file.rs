//! The file that `config default` prints: every option with its help and its default.

use std::fmt::{self, Write};

use crate::cli::{NAME, VERSION};
use crate::config::effective::{EffectiveSetting, OnReload};
use crate::config::error::ConfigError;
use crate::config::help;
use crate::config::layers::Layers;
use crate::config::options::Options;
use crate::config::resolve::resolve;

/// Maximum columns of a comment line.
const MAX_COMMENT_COLUMNS: usize = 100;

/// Comment after the placeholder value of a setting without a default.
const NOT_SET: &str = "  # not set by default";

/// Returns a file that changes nothing: each setting is commented out and has its default.
///
/// # Errors
///
/// If the defaults are invalid, which tests exclude.
pub(crate) fn default_file() -> Result<String, Vec<ConfigError>> {
    let defaults = resolve(Layers::default())?;
    let mut file = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut file, &defaults.effective);
    Ok(file)
}

fn write_all(file: &mut String, defaults: &[EffectiveSetting]) -> fmt::Result {
    writeln!(file, "# {NAME} {VERSION}: every setting with its default.")?;
    writeln!(
        file,
        "# Remove the # in front of a setting to change it. Flags and variables override this file."
    )?;
    let parser = help::with_numbers(Options::parser());
    let mut heading = None;
    for option in parser.get_arguments() {
        let key = option.get_id().as_str();
        let Some(effective) = defaults.iter().find(|effective| effective.key == key) else {
            // `config` names the file, so it is not a key of the file.
            continue;
        };
        if option.get_help_heading() != heading {
            heading = option.get_help_heading();
            writeln!(file, "\n\n### {}", heading.unwrap_or_default())?;
        }
        writeln!(file)?;
        let help = option.get_long_help().or(option.get_help()).map(ToString::to_string);
        comment(file, &help.unwrap_or_default())?;
        if effective.on_reload == OnReload::Applied {
            writeln!(file, "#\n# Reloaded on SIGHUP.")?;
        }
        match &effective.toml {
            Some(toml) => writeln!(file, "#{key} = {toml}")?,
            None => {
                let placeholder = option.get_value_names().and_then(|names| names.first());
                writeln!(file, "#{key} = \"{}\"{NOT_SET}", placeholder.map_or("", |name| name.as_str()))?;
            }
        }
    }
    Ok(())
}

/// Writes a text as comment lines, wrapped between words.
fn comment(file: &mut String, text: &str) -> fmt::Result {
    for paragraph in text.lines() {
        let mut line = String::from("#");
        for word in paragraph.split_whitespace() {
            if line.len() + 1 + word.len() > MAX_COMMENT_COLUMNS {
                writeln!(file, "{line}")?;
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        writeln!(file, "{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Vec<(String, Option<String>)> {
        let path = std::env::temp_dir().join(format!("deeperhub-{}-default.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let flag = format!("--config={}", path.display());
        let matches = Options::parser().get_matches_from([flag]);
        let resolved = Layers::read([&matches], []).and_then(resolve);
        let _ = std::fs::remove_file(&path);
        let effective = resolved.unwrap_or_else(|errors| panic!("{errors:?}")).effective;
        effective.into_iter().map(|effective| (effective.key.to_owned(), effective.toml)).collect()
    }

    #[test]
    fn the_file_changes_nothing_and_its_values_are_the_defaults() {
        let defaults = settings("");
        let file = default_file().unwrap();
        assert_eq!(settings(&file), defaults);

        let (mut values, mut keys) = (String::new(), Vec::new());
        for line in file.lines() {
            let Some(setting) = line.strip_prefix('#').filter(|line| line.starts_with(char::is_alphabetic))
            else {
                continue;
            };
            keys.push(setting.split(' ').next().unwrap().to_owned());
            if !setting.ends_with(NOT_SET) {
                let _ = writeln!(values, "{setting}");
            }
        }
        assert_eq!(keys, Options::keys()[1..], "every setting is there once, in the order of --help");
        assert_eq!(settings(&values), defaults);
    }

    #[test]
    fn comments_are_wrapped() {
        let file = default_file().unwrap();
        let is_too_long = |line: &&str| line.starts_with("# ") && line.len() > MAX_COMMENT_COLUMNS;
        assert_eq!(file.lines().find(is_too_long), None);
    }
}
