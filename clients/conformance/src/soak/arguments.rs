//! The command line of the soak.

use std::path::PathBuf;
use std::time::Duration;

const USAGE: &str =
    "usage: deeperhub-conformance --soak --hub PATH [--minutes N] [--seed N] [--memory] -- DRIVER [ARGUMENT…]

Runs a client behind a proxy that breaks its connections, while the hub is restarted and killed.
The hub keeps its history on disk, or in memory with --memory. Default: 60 minutes, a random seed.";

/// Settings of a run.
pub(super) struct Arguments {
    /// Program of the hub.
    pub(super) hub: PathBuf,
    pub(super) duration: Duration,
    pub(super) seed: u64,
    /// `true` if the hub keeps its history on disk.
    pub(super) on_disk: bool,
    /// Command line of the driver.
    pub(super) driver: Vec<String>,
}

impl Arguments {
    /// Parses the command line, or returns a text for the user.
    pub(super) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self {
            hub: PathBuf::new(),
            duration: Duration::from_secs(3600),
            seed: fastrand::u64(..),
            on_disk: true,
            driver: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut number = |name: &str| {
                let text = arguments.next().unwrap_or_default();
                text.parse::<u64>().map_err(|_| format!("{name} takes a number, not {text:?}\n{USAGE}"))
            };
            match argument.as_str() {
                "--minutes" => parsed.duration = Duration::from_secs(number("--minutes")?.saturating_mul(60)),
                "--seconds" => parsed.duration = Duration::from_secs(number("--seconds")?),
                "--seed" => parsed.seed = number("--seed")?,
                "--memory" => parsed.on_disk = false,
                "--hub" => parsed.hub = arguments.next().unwrap_or_default().into(),
                "--" => parsed.driver = arguments.by_ref().collect(),
                _ => return Err(USAGE.to_owned()),
            }
        }
        if parsed.driver.is_empty() || parsed.hub.as_os_str().is_empty() {
            return Err(USAGE.to_owned());
        }
        Ok(parsed)
    }
}
