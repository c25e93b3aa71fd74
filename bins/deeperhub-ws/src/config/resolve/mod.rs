//! Resolves options into settings: fills in defaults, checks values, and records their origins.
//!
//! Each file resolves the options under one heading. It destructures the options without `..`, so
//! that the compiler reports a new option that is not resolved. It takes each option either as
//! `fixed`, which needs a restart, or as `live`, which SIGHUP applies. A `live` value belongs to the
//! limits that `reload::settings` hands to the running server.

/// Resolves a field of the options. The field's name is the key of the setting.
macro_rules! take {
    ($resolver:ident, fixed $($rest:tt)+) => {
        take!($resolver, (OnReload::RestartRequired) $($rest)+)
    };
    ($resolver:ident, live $($rest:tt)+) => {
        take!($resolver, (OnReload::Applied) $($rest)+)
    };
    ($resolver:ident, ($on_reload:expr) $field:ident, $default:expr) => {
        $resolver.take(stringify!($field), $on_reload, $field, $default)
    };
    ($resolver:ident, ($on_reload:expr) $field:ident) => {
        $resolver.take_optional(stringify!($field), $on_reload, $field)
    };
}

/// Resolves a duration that must not be zero.
macro_rules! take_nonzero {
    ($resolver:ident, fixed $field:ident, $default:expr) => {
        take_nonzero!($resolver, (OnReload::RestartRequired) $field, $default)
    };
    ($resolver:ident, live $field:ident, $default:expr) => {
        take_nonzero!($resolver, (OnReload::Applied) $field, $default)
    };
    ($resolver:ident, ($on_reload:expr) $field:ident, $default:expr) => {
        $resolver.take_nonzero(stringify!($field), $on_reload, $field, Time($default)).0
    };
}

mod api;
mod cluster;
mod compression;
mod general;
mod history;
mod limits;
mod listening;
mod logs;
mod resolver;
mod telemetry;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod web_pages;

use std::sync::Arc;

use self::resolver::Resolver;
use crate::config::effective::Settings;
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::config::options::Options;

/// Fills in the defaults and checks the settings against each other.
///
/// # Errors
///
/// If settings are invalid. Returns all errors, not only the first.
pub(crate) fn resolve(layers: Layers) -> Result<Settings, Vec<ConfigError>> {
    let Layers { options, origins, rule_origins, warnings } = layers;
    // The order of the fields is the order of `config show`.
    let Options {
        general,
        listening,
        tls,
        api,
        tokens,
        limits,
        history,
        compression,
        web_pages,
        cluster,
        logs,
        telemetry,
    } = options;
    let mut resolver = Resolver { origins, warnings, ..Resolver::default() };
    let mut node = deeperhub_node::Config::default();

    let (config, drain_timeout) = general::resolve(&mut resolver, general, &mut node);
    let address = listening::resolve(&mut resolver, listening, &mut node.listener);
    let tls = tls::resolve(&mut resolver, tls);
    node.listener.tls = tls.as_ref().map(|tls| Arc::clone(&tls.current));
    let api = api::resolve(&mut resolver, api, &mut node);
    let (auth, max_token_bytes) = tokens::resolve(&mut resolver, tokens, &mut node.auth);
    limits::resolve(&mut resolver, limits, &mut node);
    history::resolve(&mut resolver, history, &rule_origins, &mut node);
    compression::resolve(&mut resolver, compression, &mut node.listener.compression);
    node.session.origins = web_pages::resolve(&mut resolver, web_pages);
    node.cluster = cluster::resolve(&mut resolver, cluster);
    let log = logs::resolve(&mut resolver, logs);
    let telemetry = telemetry::resolve(&mut resolver, telemetry);

    // These checks compare settings of several headings.
    listening::warn_of_open_address(&mut resolver, &address, node.auth.required);
    limits::warn_of_small_queue(&mut resolver, &node.listener.limits);
    history::refuse_disk_in_cluster(&mut resolver, &mut node, &rule_origins);
    tokens::warn_of_long_tokens(&mut resolver, max_token_bytes, &node.listener.limits);
    let api = api.finish(&mut resolver, &address, &node);

    let Resolver { effective, warnings, errors, .. } = resolver;
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Settings {
        address,
        node,
        auth,
        tls,
        api,
        drain_timeout,
        log,
        telemetry,
        config,
        rule_origins,
        effective,
        warnings,
    })
}
