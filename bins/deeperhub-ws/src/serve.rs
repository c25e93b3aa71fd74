//! Serving: from settings to a node that runs, until a signal comes.

use std::io::{self, Write};
use std::process::ExitCode;

use tracing::warn;

use crate::settings::Settings;
use crate::{FAILED, logging, nofile};

/// Serves until a signal comes.
pub(crate) fn serve(settings: &Settings) -> ExitCode {
    if let Err(error) = logging::install(settings.log_level, settings.log_format) {
        let _ = writeln!(io::stderr(), "error: {error}");
        return ExitCode::from(FAILED);
    }
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    if let Err(sentence) = nofile::raise(settings.listener.max_connections, settings.listener.workers) {
        warn!("{sentence}");
    }
    let _ = writeln!(io::stderr(), "error: the node is not built in yet");
    ExitCode::from(FAILED)
}
