//! Resolves the options under "Server API".

use std::sync::Arc;

use deeperhub_api::ApiConfig;
use deeperhub_args::{Address, Switchable, Time};
use deeperhub_node::Config;
use deeperhub_security::Secret;

use super::{Resolver, tls};
use crate::config::effective::{ApiSettings, OnReload, defaults};
use crate::config::options::{ApiOptions, flag, variable};
use crate::config::values::Dashboard;
use crate::reload::tls::{Tls, TlsFileOptions, TlsKeys};

/// The resolved options of the server API, not yet checked against the other settings.
pub(super) struct UncheckedApi {
    listen: Switchable<Address>,
    key: Option<Secret>,
    tls: Option<Tls>,
    config: ApiConfig,
}

/// Resolves the options one by one.
pub(super) fn resolve(resolver: &mut Resolver, options: ApiOptions, node: &mut Config) -> UncheckedApi {
    let ApiOptions {
        api_listen,
        api_key,
        api_tls_cert,
        api_tls_key,
        dashboard,
        max_api_connections,
        api_idle_timeout,
        api_timeout,
        max_api_bytes,
        max_event_streams,
        max_event_bytes,
        canary_interval,
        canary_timeout,
        max_batch_calls,
        max_batch_bytes,
        idempotency_ttl,
        max_idempotency_keys,
        max_idempotency_bytes,
    } = options;
    let listen = take!(resolver, fixed api_listen, Switchable::On(defaults::API_ADDRESS));
    // An API that is off applies nothing.
    let on_reload = match listen {
        Switchable::On(_) => OnReload::Applied,
        Switchable::Off => OnReload::RestartRequired,
    };
    let key = take!(resolver, (on_reload) api_key);
    let files = TlsFileOptions {
        keys: TlsKeys::API,
        cert: take!(resolver, fixed api_tls_cert),
        key: take!(resolver, fixed api_tls_key),
        client_ca: None,
        client_auth: None,
    };
    let tls = tls::load(resolver, files);
    let mut config = ApiConfig::default();
    config.dashboard = take!(resolver, fixed dashboard, Dashboard::On) == Dashboard::On;
    config.max_connections = take!(resolver, fixed max_api_connections, config.max_connections);
    config.idle_timeout = take_nonzero!(resolver, fixed api_idle_timeout, config.idle_timeout);
    config.timeout = take_nonzero!(resolver, fixed api_timeout, config.timeout);
    config.max_held_bytes = take!(resolver, fixed max_api_bytes, config.max_held_bytes);
    config.max_event_streams = take!(resolver, fixed max_event_streams, config.max_event_streams);
    // The event log is one more observer.
    node.events.max_observers = config.max_event_streams.saturating_add(1);
    node.events.max_queue_bytes = take!(resolver, fixed max_event_bytes, node.events.max_queue_bytes);
    node.canary.interval = take!(resolver, fixed canary_interval, Time(node.canary.interval)).0;
    node.canary.timeout = take_nonzero!(resolver, fixed canary_timeout, node.canary.timeout);
    config.limits.max_batch_calls =
        take!(resolver, (on_reload) max_batch_calls, config.limits.max_batch_calls);
    config.limits.max_batch_bytes =
        take!(resolver, (on_reload) max_batch_bytes, config.limits.max_batch_bytes);
    let idempotency = &mut config.limits.idempotency;
    idempotency.ttl = take!(resolver, (on_reload) idempotency_ttl, Time(idempotency.ttl)).0;
    idempotency.max_keys = take!(resolver, (on_reload) max_idempotency_keys, idempotency.max_keys);
    idempotency.max_bytes = take!(resolver, (on_reload) max_idempotency_bytes, idempotency.max_bytes);
    UncheckedApi { listen, key, tls, config }
}

impl UncheckedApi {
    /// Checks the address and the key, and copies the limits that the API shares with clients.
    /// Returns `None` if the API is off.
    pub(super) fn finish(
        self,
        resolver: &mut Resolver,
        client_address: &Address,
        node: &Config,
    ) -> Option<ApiSettings> {
        let Self { listen, key, tls, mut config } = self;
        if key.as_ref().is_some_and(|key| !is_bearer(key.expose())) {
            let expected = "expected one or more visible ASCII characters, without spaces";
            resolver.invalid_secret("api_key", expected.to_owned());
        }
        let Switchable::On(address) = listen else { return None };
        let name = resolver.name_of("api_listen");
        if key.is_none() && !address.host.is_loopback() {
            resolver.conflict(format!(
                "invalid value '{address}' for {name}: anyone who reaches it has full control; expected a loopback \
                 address, or a key in {}, {} or api_key",
                flag("api_key"),
                variable("api_key"),
            ));
        }
        if tls.is_none() && !address.host.is_loopback() {
            resolver.warnings.push(format!(
                "{name} is {address} without TLS: the API key and all messages cross the network in the clear; set {} \
                 and {}, or put a proxy with TLS in front",
                flag("api_tls_cert"),
                flag("api_tls_key"),
            ));
        }
        if address.overlaps(client_address) {
            resolver.conflict(format!(
                "invalid value '{address}' for {name}: clients connect there ({}); expected another port",
                resolver.name_of("port"),
            ));
        }
        config.limits.api_key = key.map(Arc::new);
        config.limits.allowed_origins = node.session.origins.clone();
        config.limits.max_body_bytes = node.listener.limits.max_message_bytes;
        config.limits.max_json_depth = node.session.max_json_depth;
        config.tls = tls.as_ref().map(|tls| Arc::clone(&tls.current));
        Some(ApiSettings { address, tls, config })
    }
}

/// Returns `true` if a text can follow `Bearer` in a header.
fn is_bearer(key: &[u8]) -> bool {
    !key.is_empty() && key.iter().all(u8::is_ascii_graphic)
}
