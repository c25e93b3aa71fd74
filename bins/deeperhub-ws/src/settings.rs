//! The settings that a server runs with, and how `config show` writes them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::layers::Origin;
use crate::values::{Address, LogFormat, LogLevel, Secret};

/// Valid by construction: only `resolve` makes them.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where clients connect.
    pub(crate) address: Address,
    /// Paths at which they connect.
    pub(crate) paths: Vec<String>,
    /// The server API; `None` when it is off.
    pub(crate) api: Option<ApiSettings>,
    /// Sockets, threads, sizes and times.
    pub(crate) listener: deeperhub_listener::Config,
    /// Subscriptions of one connection.
    pub(crate) max_subscriptions: usize,
    /// Messages of one connection; `None`: no limit.
    pub(crate) rate_limit: Option<MessageRate>,
    /// Web origins besides the server's own.
    pub(crate) allowed_origins: Vec<String>,
    /// This node's name; `None`: random.
    pub(crate) node_id: Option<String>,
    /// Time over which connections are closed at the end.
    pub(crate) drain_timeout: Duration,
    /// What is logged.
    pub(crate) log_level: LogLevel,
    /// How.
    pub(crate) log_format: LogFormat,
    /// The file that was read, and who named it.
    pub(crate) config: Option<(PathBuf, Origin)>,
    /// Every setting as text, in the order of the options.
    pub(crate) shown: Vec<Shown>,
    /// What is no error but probably not meant.
    pub(crate) warnings: Vec<String>,
}

/// The server API's part.
#[derive(Debug)]
pub(crate) struct ApiSettings {
    /// Where it listens.
    pub(crate) address: Address,
    /// The key that calls must bring; `None` only on loopback.
    pub(crate) key: Option<Secret>,
}

/// Messages that a connection may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageRate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

/// One setting for `config show`.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) key: &'static str,
    /// The value as TOML; `None` when there is none.
    pub(crate) literal: Option<String>,
    pub(crate) origin: Origin,
}

impl Settings {
    pub(crate) const PORT: u16 = 8080;
    pub(crate) const API_PORT: u16 = 8081;
    pub(crate) const PATHS: [&str; 2] = ["/", "/ws"];
    pub(crate) const MAX_SUBSCRIPTIONS: usize = 128;
    pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

    /// The effective configuration as TOML with the origin of each value as a comment. A setting without a value is a
    /// comment altogether; secrets are masked.
    pub(crate) fn show(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            if let Some((path, origin)) = &self.config {
                writeln!(f, "# File {} (from {origin}).", path.display())?;
            }
            let assignments: Vec<_> = self
                .shown
                .iter()
                .map(|Shown { key, literal, .. }| match literal {
                    Some(literal) => format!("{key} = {literal}"),
                    None => format!("# {key} is not set"),
                })
                .collect();
            let width =
                assignments.iter().map(|assignment| assignment.chars().count()).max().unwrap_or(0).min(48);
            for (Shown { key, origin, .. }, assignment) in self.shown.iter().zip(assignments) {
                writeln!(f, "{assignment:width$}  # {}", origin.of(key))?;
            }
            Ok(())
        })
    }
}

impl MessageRate {
    pub(crate) const DEFAULT: Self = Self { per_second: 100, burst: 200 };
}
