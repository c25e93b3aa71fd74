//! Origin of a setting: flag, variable, file or default.

use std::fmt;
use std::path::PathBuf;

use crate::config::options::{flag, variable};

/// Origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingOrigin {
    /// The command line.
    Flag,
    /// The environment.
    Variable,
    /// A line of the file, counted from 1.
    File { path: PathBuf, line: usize },
    /// No layer has the setting.
    Default,
}

impl SettingOrigin {
    /// Returns the setting's name in its layer: `--port`, `DEEPERHUB_PORT`, `port in hub.toml:3`.
    pub(crate) fn name_of(&self, key: &str) -> String {
        match self {
            Self::Flag => flag(key),
            Self::Variable => variable(key),
            Self::File { path, line } => format!("{key} in {}:{line}", path.display()),
            Self::Default => key.to_owned(),
        }
    }

    /// Returns the origin as `config show` writes it beside the setting: `--port`,
    /// `DEEPERHUB_PORT`, `hub.toml:3` or `default`.
    pub(crate) fn label(&self, key: &str) -> String {
        match self {
            Self::Flag => flag(key),
            Self::Variable => variable(key),
            Self::File { path, line } => format!("{}:{line}", path.display()),
            Self::Default => "default".to_owned(),
        }
    }
}

impl fmt::Display for SettingOrigin {
    /// Writes the origin of the file's path, which is the setting `config`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label("config"))
    }
}
