//! The default configuration as a file with comments, made from the options, so that neither lacks what the other has.

use std::fmt::{self, Write};

use crate::cli::{NAME, VERSION};
use crate::layers::Layers;
use crate::live::LIVE;
use crate::options::Options;
use crate::problem::Problem;
use crate::resolve::resolve;
use crate::settings::Shown;

/// Columns that a comment takes.
const WIDTH: usize = 100;

/// What follows a setting that has no default; its value is only a form.
const NOT_SET: &str = "  # not set by default";

/// A file that changes nothing: each setting stands behind a `#` with its default.
///
/// # Errors
///
/// None, as defaults are valid.
pub(crate) fn default_file() -> Result<String, Vec<Problem>> {
    let defaults = resolve(Layers::default())?;
    let mut file = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut file, &defaults.shown);
    Ok(file)
}

fn write_all(file: &mut String, defaults: &[Shown]) -> fmt::Result {
    writeln!(file, "# {NAME} {VERSION}: every setting with its default.")?;
    writeln!(
        file,
        "# Take the # away in front of a setting to change it. Flags and variables win over this file."
    )?;
    let parser = Options::parser();
    let mut heading = None;
    for option in parser.get_arguments() {
        let key = option.get_id().as_str();
        let Some(shown) = defaults.iter().find(|shown| shown.key == key) else {
            // The file cannot name itself.
            continue;
        };
        if option.get_help_heading() != heading {
            heading = option.get_help_heading();
            writeln!(file, "\n\n### {}", heading.unwrap_or_default())?;
        }
        writeln!(file)?;
        let help = option.get_long_help().or(option.get_help()).map(ToString::to_string);
        comment(file, &help.unwrap_or_default())?;
        if LIVE.contains(&key) {
            writeln!(file, "#\n# Reloaded on SIGHUP.")?;
        }
        match &shown.literal {
            Some(literal) => writeln!(file, "#{key} = {literal}")?,
            None => {
                let form = option.get_value_names().and_then(|names| names.first());
                writeln!(file, "#{key} = \"{}\"{NOT_SET}", form.map_or("", |form| form.as_str()))?;
            }
        }
    }
    Ok(())
}

/// Writes a text as comments, broken between words.
fn comment(file: &mut String, text: &str) -> fmt::Result {
    for paragraph in text.lines() {
        let mut line = String::from("#");
        for word in paragraph.split_whitespace() {
            if line.len() + 1 + word.len() > WIDTH {
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
        let resolved = Layers::gather([&matches], []).and_then(resolve);
        let _ = std::fs::remove_file(&path);
        let shown = resolved.unwrap_or_else(|problems| panic!("{problems:?}")).shown;
        shown.into_iter().map(|shown| (shown.key.to_owned(), shown.literal)).collect()
    }

    #[test]
    fn as_it_is_it_changes_nothing_and_with_its_values_it_means_the_defaults() {
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
        assert_eq!(keys, Options::keys()[1..], "every setting stands there once, in the order of --help");
        assert_eq!(settings(&values), defaults);
    }

    #[test]
    fn its_comments_keep_to_a_width() {
        let file = default_file().unwrap();
        let long: Vec<_> = file.lines().filter(|line| line.starts_with("# ") && line.len() > WIDTH).collect();
        assert_eq!(long, [""; 0]);
    }
}
