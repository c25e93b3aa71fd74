//! Log of the program: writes lines of text or JSON to standard error, through a queue.

pub(crate) mod events;
mod format;
pub(crate) mod queue;
mod rate_limit;

use std::io::{self, IsTerminal};

use tokio::sync::watch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::effective::LogSettings;
use crate::config::values::{LogFormat, LogLevel};
use crate::log::format::{JsonLines, TextLines, TraceIdsLayer};
use crate::log::queue::{LogQueue, captured};
use crate::log::rate_limit::LogRateLimit;

/// Prefix of the targets of the hub's own crates.
const OWN_TARGET_PREFIX: &str = "deeperhub";

/// Installs the process's global log, and a panic hook that writes to it.
///
/// # Errors
///
/// If a log is already installed, or the thread of the queue cannot be started.
pub(crate) fn install(settings: LogSettings) -> io::Result<(Level, LogQueue)> {
    let LogSettings { level, format, queue_bytes } = settings;
    let queue = LogQueue::start(queue_bytes, io::stderr(), lost_lines_report)?;
    // The layer would write its own errors with `eprintln!`, which can panic on the logging thread.
    let layer = tracing_subscriber::fmt::layer().with_writer(queue.clone()).log_internal_errors(false);
    let layer = match format {
        // Colours need a terminal, and the user can decline them (https://no-color.org).
        LogFormat::Text => {
            let colours = io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            layer.with_ansi(colours).event_format(TextLines::new(LogRateLimit::default())).boxed()
        }
        LogFormat::Json => {
            layer.with_ansi(false).event_format(JsonLines::new(LogRateLimit::default())).boxed()
        }
    };
    let (filter, handle) = reload::Layer::new(filter(level));
    let log = Registry::default().with(layer.with_filter(filter)).with(TraceIdsLayer);
    tracing::subscriber::set_global_default(log).map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok((Level { handle, current: watch::Sender::new(level) }, queue))
}

/// Returns the log line that reports `lines` lost lines.
fn lost_lines_report(lines: u64) -> Vec<u8> {
    captured(|| {
        tracing::warn!(
            target: "deeperhub_ws::log::queue",
            lines,
            "Log lines lost on slow standard error"
        );
    })
}

/// Logs the thread and the location of a panic, but not its message, which may contain data of a
/// client.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let location = panic.location().map(tracing::field::display);
    tracing::error!(thread = thread.name(), location, "Thread panicked");
}

/// Handle to the level of the log.
#[derive(Debug)]
pub(crate) struct Level {
    handle: reload::Handle<Targets, Registry>,
    current: watch::Sender<LogLevel>,
}

impl Level {
    /// Changes the level.
    pub(crate) fn set(&self, level: LogLevel) {
        let changed = self.current.send_if_modified(|current| std::mem::replace(current, level) != level);
        if changed && let Err(error) = self.handle.reload(filter(level)) {
            tracing::warn!(%error, "Log level change failed");
        }
    }

    /// Returns a receiver that watches the level.
    pub(crate) fn watch(&self) -> watch::Receiver<LogLevel> {
        self.current.subscribe()
    }
}

/// Returns the filter for a level. Only at `trace` do libraries log more than `info`, because their
/// debug events do not help an operator of a hub.
fn filter(level: LogLevel) -> Targets {
    let own = LevelFilter::from(level);
    let libraries = if level == LogLevel::Trace { own } else { own.min(LevelFilter::INFO) };
    Targets::new().with_default(libraries).with_target(OWN_TARGET_PREFIX, own)
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn the_debug_level_shows_events_of_the_hubs_crates_only() {
        for (level, target, event, expected) in [
            (LogLevel::Debug, "deeperhub_node::session", Level::DEBUG, true),
            (LogLevel::Debug, "deeperhub_node::session", Level::TRACE, false),
            (LogLevel::Debug, "mio::poll", Level::DEBUG, false),
            (LogLevel::Debug, "mio::poll", Level::INFO, true),
            (LogLevel::Trace, "mio::poll", Level::TRACE, true),
            (LogLevel::Warn, "mio::poll", Level::INFO, false),
            (LogLevel::Warn, "deeperhub_ws", Level::WARN, true),
            (LogLevel::Error, "deeperhub_ws", Level::WARN, false),
        ] {
            assert_eq!(filter(level).would_enable(target, &event), expected, "{level:?} {target} {event}");
        }
    }
}
