//! Resolves the options under "Logs".

use super::Resolver;
use crate::config::effective::{LogSettings, OnReload, defaults};
use crate::config::options::LogOptions;
use crate::config::values::{LogFormat, LogLevel};

/// Returns the settings of the log.
pub(super) fn resolve(resolver: &mut Resolver, options: LogOptions) -> LogSettings {
    let LogOptions { log_level, log_format, log_queue_bytes } = options;
    LogSettings {
        level: take!(resolver, live log_level, LogLevel::Info),
        format: take!(resolver, fixed log_format, LogFormat::Text),
        queue_bytes: take!(resolver, fixed log_queue_bytes, defaults::LOG_QUEUE_BYTES),
    }
}
