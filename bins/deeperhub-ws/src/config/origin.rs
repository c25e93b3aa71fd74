//! Where a setting came from.

use std::fmt;
use std::path::PathBuf;

use crate::config::options::{flag, variable};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingOrigin {
    /// The command line.
    Flag,
    /// The environment.
    Variable,
    /// A line, counted from 1, of the file.
    File { path: PathBuf, line: usize },
    /// Nobody said anything.
    Default,
}

impl SettingOrigin {
    /// The setting in the words of the layer: `--port`, `DEEPERHUB_PORT`, `port in hub.toml:3`.
    pub(crate) fn name_of(&self, key: &str) -> String {
        match self {
            Self::Flag => flag(key),
            Self::Variable => variable(key),
            Self::File { path, line } => format!("{key} in {}:{line}", path.display()),
            Self::Default => key.to_owned(),
        }
    }

    /// The origin alone, for a reader who knows the key: `--port`, `DEEPERHUB_PORT`, `hub.toml:3`, `default`.
    pub(crate) fn of(&self, key: &str) -> String {
        match self {
            Self::Flag => flag(key),
            Self::Variable => variable(key),
            Self::File { path, line } => format!("{}:{line}", path.display()),
            Self::Default => "default".to_owned(),
        }
    }
}

impl fmt::Display for SettingOrigin {
    /// As [`SettingOrigin::of`] the key `config`, the one setting that is read before the file is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of("config"))
    }
}
