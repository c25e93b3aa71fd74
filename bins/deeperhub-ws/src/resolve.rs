//! From settings as typed to settings that are valid together, with where each came from.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use deeperhub_api::ApiConfig;
use deeperhub_listener::MemoryBudget;
use deeperhub_node::ClusterConfig;
use deeperhub_security::proxy::TrustedProxies;
use deeperhub_security::{OriginPolicy, RateLimit, Secret, auth};

use crate::auth::{Auth, AuthSources};
use crate::layers::{Layers, Origin};
use crate::memory;
use crate::options::{Options, flag, variable};
use crate::problem::Problem;
use crate::settings::{ApiSettings, Settings, Shown};
use crate::tls::{Files, Tls};
use crate::values::{
    ClusterUrl, ForwardedHeader, IoUring, Limits, Literal, LogFormat, LogLevel, ProxyProtocol,
    WhenUnavailable,
};
use deeperhub_args::{Address, Host, Switchable, Time, UrlPath};

/// Fills in the defaults and checks what the settings say together.
///
/// # Errors
///
/// Everything that is wrong, not just the first.
pub(crate) fn resolve(layers: Layers) -> Result<Settings, Vec<Problem>> {
    let Layers { options, origins, warnings } = layers;
    // Without `..`: a new option must be given its meaning here.
    let Options {
        config,
        workers,
        io_uring,
        node_id,
        drain_timeout,
        restart_time,
        host,
        port,
        path,
        probe_path,
        trusted_proxy,
        forwarded_header,
        proxy_protocol,
        tls_cert,
        tls_key,
        tls_client_ca,
        tls_client_auth,
        api_listen,
        api_key,
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
        auth_secret_file,
        auth_jwks_file,
        auth_required,
        auth_grace,
        auth_audience,
        auth_issuer,
        auth_leeway,
        max_token_bytes,
        max_connections,
        max_connections_per_ip,
        connection_rate_per_ip,
        max_message_bytes,
        max_fragments,
        max_json_depth,
        max_subscriptions,
        max_queue_bytes,
        limits,
        round_bytes,
        round_time,
        max_memory,
        reconnect_rate,
        rate_limit,
        rate_burst,
        byte_rate_limit,
        byte_rate_burst,
        control_rate_limit,
        token_rate_limit,
        burst_rate_per_ip,
        max_handshake_bytes,
        max_handshake_headers,
        handshake_timeout,
        ping_interval,
        pong_timeout,
        no_compression,
        compression_threshold,
        compression_level,
        client_context_takeover,
        allowed_origin,
        cluster,
        cluster_prefix,
        cluster_queue_bytes,
        cluster_unavailable,
        cluster_credentials,
        cluster_ca,
        log_level,
        log_format,
        log_queue_bytes,
        otlp_endpoint,
        trace_sample_ratio,
        trace_client_rate,
    } = options;
    let mut resolver = Resolver { origins, shown: Vec::new(), warnings, problems: Vec::new() };
    let config = config.map(|path| (path, resolver.origin("config")));

    // Takes a field of the options by its name, so that the name shown is the name typed.
    macro_rules! take {
        ($field:ident, $default:expr) => {
            resolver.take(stringify!($field), $field, $default)
        };
        ($field:ident) => {
            resolver.take_optional(stringify!($field), $field)
        };
    }
    macro_rules! take_some_time {
        ($field:ident, $default:expr) => {{
            let time = take!($field, Time($default));
            resolver.must(stringify!($field), &time, !time.0.is_zero(), "expected more than no time at all");
            time.0
        }};
    }

    let mut node = deeperhub_node::Config::default();
    let listener = &mut node.listener;
    listener.workers = take!(workers, listener.workers);
    listener.io_uring = take!(io_uring, IoUring::Auto) == IoUring::Auto;
    node.node_id = take!(node_id).map(|id| id.0);
    let drain_timeout = take!(drain_timeout, Time(Settings::DRAIN_TIMEOUT)).0;
    listener.restart_time = take!(restart_time, Time(listener.restart_time)).0;
    let address = Address { host: take!(host, Host::localhost()), port: take!(port, Settings::PORT) };
    let paths = take!(path, listener.paths.iter().cloned().map(UrlPath).collect());
    listener.paths = paths.into_iter().map(|path| path.0).collect();
    listener.probe_path = match take!(probe_path, Switchable::Off) {
        Switchable::On(path) => Some(path.0),
        Switchable::Off => None,
    };
    let trusted_proxies = take!(trusted_proxy, Vec::new());
    listener.trusted_proxies = resolver.trusted_proxies(&trusted_proxies);
    listener.forwarded_header = take!(forwarded_header, ForwardedHeader::Auto).into();
    listener.proxy_protocol = take!(proxy_protocol, ProxyProtocol::Detect).into();
    let tls = Files {
        cert: take!(tls_cert),
        key: take!(tls_key),
        client_ca: take!(tls_client_ca),
        client_auth: take!(tls_client_auth).map(Into::into),
    };
    let tls = resolver.tls(tls);
    listener.tls = tls.as_ref().map(|tls| Arc::clone(&tls.current));
    let api_listen = take!(api_listen, Switchable::On(Settings::API_ADDRESS));
    let api_key = take!(api_key);
    let mut api_config = ApiConfig::default();
    api_config.max_connections = take!(max_api_connections, api_config.max_connections);
    api_config.idle_timeout = take_some_time!(api_idle_timeout, api_config.idle_timeout);
    api_config.timeout = take_some_time!(api_timeout, api_config.timeout);
    api_config.max_held_bytes = take!(max_api_bytes, api_config.max_held_bytes);
    api_config.max_event_streams = take!(max_event_streams, api_config.max_event_streams);
    // One more for the event log, which is also an observer.
    node.events.max_observers = api_config.max_event_streams.saturating_add(1);
    node.events.max_queue_bytes = take!(max_event_bytes, node.events.max_queue_bytes);
    node.canary.interval = take!(canary_interval, Time(node.canary.interval)).0;
    node.canary.timeout = take_some_time!(canary_timeout, node.canary.timeout);
    let mut sources = AuthSources {
        secret_file: take!(auth_secret_file),
        jwks_file: take!(auth_jwks_file),
        ..AuthSources::default()
    };
    node.auth.required = take!(auth_required, node.auth.required);
    node.auth.grace = take_some_time!(auth_grace, node.auth.grace);
    sources.audience = take!(auth_audience, sources.audience);
    sources.issuer = take!(auth_issuer, sources.issuer);
    sources.leeway = take!(auth_leeway, Time(auth::Config::default().leeway)).0;
    sources.max_token_bytes = take!(max_token_bytes, auth::DEFAULT_MAX_TOKEN_BYTES);
    let max_token_bytes = sources.max_token_bytes;
    api_config.max_batch_calls = take!(max_batch_calls, api_config.max_batch_calls);
    api_config.max_batch_bytes = take!(max_batch_bytes, api_config.max_batch_bytes);
    let idempotency = &mut api_config.idempotency;
    idempotency.ttl = take!(idempotency_ttl, Time(idempotency.ttl)).0;
    idempotency.max_keys = take!(max_idempotency_keys, idempotency.max_keys);
    idempotency.max_bytes = take!(max_idempotency_bytes, idempotency.max_bytes);
    listener.max_connections = take!(max_connections, listener.max_connections);
    let per_ip = take!(max_connections_per_ip, listener.max_connections_per_ip.unwrap_or(0));
    listener.max_connections_per_ip = (per_ip > 0).then_some(per_ip);
    // A local proxy gives all its clients one address, so loopback is limited only if the option is
    // set explicitly.
    listener.limits_loopback = connection_rate_per_ip.is_some();
    let per_second = listener.connection_rate_per_ip.map_or(0, |limit| limit.per_second.get());
    let per_second = take!(connection_rate_per_ip, per_second);
    listener.connection_rate_per_ip =
        NonZeroU32::new(per_second).map(deeperhub_listener::connection_rate_limit);
    listener.max_message_bytes = take!(max_message_bytes, listener.max_message_bytes);
    listener.max_fragments = take!(max_fragments, listener.max_fragments);
    node.max_json_depth = take!(max_json_depth, node.max_json_depth);
    node.max_subscriptions = take!(max_subscriptions, node.max_subscriptions);
    listener.max_queue_bytes = take!(max_queue_bytes, listener.max_queue_bytes);
    listener.round_bytes = take!(round_bytes, listener.round_bytes);
    listener.round_time = take_some_time!(round_time, listener.round_time);
    listener.limit_mode = take!(limits, Limits::Enforce).into();
    let max_memory = take!(max_memory, memory::granted().unwrap_or(0));
    listener.memory = (max_memory > 0).then(|| Arc::new(MemoryBudget::new(max_memory)));
    listener.reconnects_per_second = take!(reconnect_rate, listener.reconnects_per_second);
    let per_second = take!(rate_limit, node.rate_limit.map_or(0, |limit| limit.per_second.get()));
    let burst = take!(rate_burst, RateLimit::default().burst.get());
    node.rate_limit = NonZeroU32::new(per_second)
        .zip(NonZeroU32::new(burst))
        .map(|(per_second, burst)| RateLimit::new(per_second, burst));
    let bytes_per_second = take!(byte_rate_limit, 0);
    let byte_burst = take!(byte_rate_burst, Settings::BYTE_RATE_BURST);
    node.byte_rate_limit = NonZeroU32::new(bytes_per_second)
        .zip(NonZeroU32::new(byte_burst))
        .map(|(per_second, burst)| RateLimit::new(per_second, burst));
    let control = node.control_rate_limit.map_or(0, |limit| limit.per_second.get());
    let control = take!(control_rate_limit, control);
    node.control_rate_limit = NonZeroU32::new(control).map(deeperhub_node::control_rate_limit);
    let tokens = node.token_rate_limit.map_or(0, |limit| limit.per_second.get());
    let tokens = take!(token_rate_limit, tokens);
    node.token_rate_limit = NonZeroU32::new(tokens).map(deeperhub_node::token_rate_limit);
    let bursts = node.burst_rate_per_ip.map_or(0, |limit| limit.per_second.get());
    let bursts = take!(burst_rate_per_ip, bursts);
    node.burst_rate_per_ip = NonZeroU32::new(bursts).map(deeperhub_node::burst_rate_per_ip);
    listener.max_head_bytes = take!(max_handshake_bytes, listener.max_head_bytes);
    listener.max_head_lines = take!(max_handshake_headers, listener.max_head_lines);
    listener.handshake_timeout = take_some_time!(handshake_timeout, listener.handshake_timeout);
    listener.ping_interval = take!(ping_interval, Time(listener.ping_interval)).0;
    listener.pong_timeout = take_some_time!(pong_timeout, listener.pong_timeout);
    let compression = &mut listener.compression;
    compression.enabled = !take!(no_compression, !compression.enabled);
    compression.threshold_bytes = take!(compression_threshold, compression.threshold_bytes);
    compression.level = take!(compression_level, compression.level);
    compression.client_context_takeover = take!(client_context_takeover, compression.client_context_takeover);
    let allowed_origins = take!(allowed_origin, Vec::new());
    node.origins = resolver.origins_policy(&allowed_origins);
    let cluster = take!(cluster);
    let cluster = ClusterSources {
        url: cluster,
        prefix: take!(cluster_prefix, Settings::CLUSTER_PREFIX.to_owned()),
        queue_bytes: take!(cluster_queue_bytes, Settings::CLUSTER_QUEUE_BYTES),
        ready_alone: take!(cluster_unavailable, WhenUnavailable::Unready) == WhenUnavailable::Ready,
        credentials: take!(cluster_credentials),
        ca: take!(cluster_ca),
    };
    node.cluster = resolver.cluster(cluster);
    let log_level = take!(log_level, LogLevel::Info);
    let log_format = take!(log_format, LogFormat::Text);
    let log_queue_bytes = take!(log_queue_bytes, Settings::LOG_QUEUE_BYTES);
    let otlp_endpoint = take!(otlp_endpoint);
    let trace_sample_ratio = take!(trace_sample_ratio);
    let trace_client_rate = take!(trace_client_rate, Settings::TRACE_CLIENT_RATE);

    let auth = resolver.auth(sources, node.auth.required);
    node.auth.authenticator = auth.as_ref().map(|auth| Arc::clone(&auth.authenticator));
    resolver.check_host(&address, node.auth.required);
    resolver.check_queue(&node.listener);
    resolver.check_tokens(max_token_bytes, &node.listener);
    let api = resolver.api((api_listen, api_key), &address, &node, api_config);

    let Resolver { shown, warnings, problems, .. } = resolver;
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Settings {
        address,
        node,
        auth,
        tls,
        api,
        drain_timeout,
        log_level,
        log_format,
        log_queue_bytes,
        otlp_endpoint,
        trace_sample_ratio,
        trace_client_rate,
        config,
        shown,
        warnings,
    })
}

struct Resolver {
    origins: BTreeMap<String, Origin>,
    shown: Vec<Shown>,
    warnings: Vec<String>,
    problems: Vec<Problem>,
}

impl Resolver {
    fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// The value given, or the default.
    fn take<T: Literal>(&mut self, key: &'static str, given: Option<T>, default: T) -> T {
        let origin = self.origin(key);
        let value = given.unwrap_or_else(|| {
            // A list without items is typed, but given by nobody.
            if origin != Origin::Default && default.literal() != "[]" {
                self.problems.push(Problem::Invalid {
                    key: key.to_owned(),
                    origin: origin.clone(),
                    value: "[]".to_owned(),
                    expected: format!("expected at least one, or no {key} at all for {}", default.literal()),
                });
            }
            default
        });
        self.shown.push(Shown { key, literal: Some(value.literal()), origin });
        value
    }

    /// The value given, where the default is none.
    fn take_optional<T: Literal>(&mut self, key: &'static str, given: Option<T>) -> Option<T> {
        let literal = given.as_ref().map(Literal::literal);
        self.shown.push(Shown { key, literal, origin: self.origin(key) });
        given
    }

    fn must(&mut self, key: &str, value: &impl ToString, holds: bool, expected: &str) {
        if !holds {
            self.problems.push(Problem::Invalid {
                key: key.to_owned(),
                origin: self.origin(key),
                value: value.to_string(),
                expected: expected.to_owned(),
            });
        }
    }

    fn origins_policy(&mut self, allowed: &[String]) -> OriginPolicy {
        OriginPolicy::parse(allowed).unwrap_or_else(|error| {
            self.problems.push(Problem::Invalid {
                key: "allowed_origin".to_owned(),
                origin: self.origin("allowed_origin"),
                value: error.value().to_owned(),
                expected: format!("expected {}", error.expected()),
            });
            OriginPolicy::default()
        })
    }

    /// Reads the keys for tokens.
    fn auth(&mut self, sources: AuthSources, required: bool) -> Option<Auth> {
        let files = [
            ("auth_secret_file", sources.secret_file.clone()),
            ("auth_jwks_file", sources.jwks_file.clone()),
        ];
        if files.iter().all(|(_, path)| path.is_none()) {
            self.check_without_keys(&sources, required);
            return None;
        }
        // Each alone, so that the one that is wrong is named, and both where both are.
        let mut is_good = true;
        for (key, path) in files {
            let Some(path) = path else { continue };
            let alone = match key {
                "auth_secret_file" => AuthSources { jwks_file: None, ..sources.clone() },
                _ => AuthSources { secret_file: None, ..sources.clone() },
            };
            if let Err(error) = alone.load() {
                is_good = false;
                self.problems.push(Problem::Invalid {
                    key: key.to_owned(),
                    origin: self.origin(key),
                    value: path.display().to_string(),
                    expected: error.reason(),
                });
            }
        }
        if !is_good {
            return None;
        }
        match Auth::load(sources) {
            Ok(auth) => {
                self.warnings.extend(auth.warnings());
                Some(auth)
            }
            // They changed since.
            Err(error) => {
                self.problems.push(Problem::Conflict(error.reason()));
                None
            }
        }
    }

    fn trusted_proxies(&mut self, networks: &[String]) -> TrustedProxies {
        TrustedProxies::parse(networks).unwrap_or_else(|error| {
            self.problems.push(Problem::Invalid {
                key: "trusted_proxy".to_owned(),
                origin: self.origin("trusted_proxy"),
                value: error.text,
                expected: error.problem.to_string(),
            });
            TrustedProxies::default()
        })
    }

    /// TLS from files that are read here, so that `config check` finds what is wrong with them.
    fn tls(&mut self, files: Files) -> Option<Tls> {
        let files = match files.together() {
            Ok(files) => files?,
            Err((given, missing)) => {
                self.problems.push(Problem::Conflict(format!(
                    "{} needs {}, {} or {missing} as well",
                    self.origin(given).name_of(given),
                    flag(missing),
                    variable(missing),
                )));
                return None;
            }
        };
        match Tls::load(files) {
            Ok((tls, warnings)) => {
                self.warnings.extend(warnings);
                Some(tls)
            }
            Err(fault) => {
                self.problems.push(Problem::Invalid {
                    key: fault.key.to_owned(),
                    origin: self.origin(fault.key),
                    value: fault.path.display().to_string(),
                    expected: fault.problem,
                });
                None
            }
        }
    }

    fn check_without_keys(&mut self, sources: &AuthSources, required: bool) {
        if required {
            self.problems.push(Problem::Conflict(format!(
                "{} needs keys to check tokens with: expected {}, {} or both",
                self.origin("auth_required").name_of("auth_required"),
                flag("auth_secret_file"),
                flag("auth_jwks_file"),
            )));
        }
        for (key, values) in [("auth_audience", &sources.audience), ("auth_issuer", &sources.issuer)] {
            if !values.is_empty() {
                self.warnings.push(format!(
                    "{} means nothing, as there are no keys to check tokens with",
                    self.origin(key).name_of(key),
                ));
            }
        }
    }

    fn check_host(&mut self, address: &Address, tokens_required: bool) {
        if !address.host.is_loopback() && !tokens_required {
            self.warnings.push(format!(
                "{} is {}, which is not loopback, and clients need no token: whoever reaches port {} may subscribe \
                 and publish, unless --auth-required is set",
                self.origin("host").name_of("host"),
                address.host,
                address.port,
            ));
        }
    }

    fn cluster(&mut self, sources: ClusterSources) -> Option<ClusterConfig> {
        let ClusterSources { url, prefix, queue_bytes, ready_alone, credentials, ca } = sources;
        let fits = deeperhub_cluster::is_prefix(&prefix);
        self.must("cluster_prefix", &prefix, fits, "expected 1 to 64 of A-Z, a-z, 0-9, _ and -");
        let Some(ClusterUrl(url)) = url else {
            for (key, given) in [("cluster_credentials", &credentials), ("cluster_ca", &ca)] {
                if given.is_some() {
                    let name = self.origin(key).name_of(key);
                    self.problems.push(Problem::Conflict(format!(
                        "{name} is set and there is no cluster; expected a broker in {}, {} or cluster as well",
                        flag("cluster"),
                        variable("cluster"),
                    )));
                }
            }
            return None;
        };
        let url = match url {
            Ok(url) => url,
            Err(error) => {
                self.problems.push(Problem::InvalidSecret {
                    key: "cluster".to_owned(),
                    origin: self.origin("cluster"),
                    expected: error.to_string(),
                });
                return None;
            }
        };
        let is_nats = url.engine() == deeperhub_cluster::Engine::Nats;
        if !is_nats && let Some(file) = &credentials {
            let none = "expected none with a broker that is not NATS: user and password stand in the URL";
            self.must("cluster_credentials", &file.display(), false, none);
        }
        let read = |file: &PathBuf| {
            std::fs::read_to_string(file)
                .map_err(|error| format!("expected a file that can be read ({error})"))
        };
        let faults = [
            (
                "cluster_credentials",
                credentials.as_ref().filter(|_| is_nats).map(|file| {
                    (file, read(file).and_then(|text| deeperhub_cluster::check_credentials(&text)))
                }),
            ),
            (
                "cluster_ca",
                ca.as_ref().map(|file| {
                    let certificates = |_| {
                        deeperhub_telemetry::certificates(file)
                            .map_err(|error| format!("expected one or more certificates in PEM ({error})"))
                    };
                    (file, read(file).and_then(certificates).map(drop))
                }),
            ),
        ];
        for (key, checked) in faults {
            if let Some((file, Err(expected))) = checked {
                self.must(key, &file.display(), false, &expected);
            }
        }
        let mut broker = deeperhub_cluster::Config::new(url);
        (broker.prefix, broker.queue_bytes) = (prefix, queue_bytes);
        (broker.credentials, broker.ca) = (credentials, ca);
        let mut config = ClusterConfig::new(broker);
        config.ready_alone = ready_alone;
        Some(config)
    }

    /// Warns when `max_token_bytes` allows tokens that do not fit into a handshake or a message.
    /// The server rejects them with an error that does not name that setting.
    fn check_tokens(&mut self, max_token_bytes: usize, listener: &deeperhub_listener::Config) {
        for (key, room) in [
            ("max_handshake_bytes", listener.max_head_bytes),
            ("max_message_bytes", listener.max_message_bytes),
        ] {
            if self.origin("max_token_bytes") != Origin::Default && room <= max_token_bytes {
                self.warnings.push(format!(
                    "{} is {max_token_bytes} bytes, and {} takes {room} with all that goes with a token: one that is \
                     longer does not fit",
                    self.origin("max_token_bytes").name_of("max_token_bytes"),
                    flag(key),
                ));
            }
        }
    }

    fn check_queue(&mut self, listener: &deeperhub_listener::Config) {
        if listener.max_queue_bytes < listener.max_message_bytes {
            self.warnings.push(format!(
                "{} is {} bytes, less than the largest message ({} bytes): such a message closes those who get it",
                self.origin("max_queue_bytes").name_of("max_queue_bytes"),
                listener.max_queue_bytes,
                listener.max_message_bytes,
            ));
        }
    }

    fn api(
        &mut self,
        (listen, key): (Switchable<Address>, Option<Secret>),
        clients: &Address,
        node: &deeperhub_node::Config,
        mut config: ApiConfig,
    ) -> Option<ApiSettings> {
        if let Some(key) = &key
            && !is_bearer(key.expose())
        {
            self.problems.push(Problem::InvalidSecret {
                key: "api_key".to_owned(),
                origin: self.origin("api_key"),
                expected: "expected one or more ASCII characters that can be seen, without spaces".to_owned(),
            });
        }
        let Switchable::On(address) = listen else { return None };
        let name = self.origin("api_listen").name_of("api_listen");
        if key.is_none() && !address.host.is_loopback() {
            self.problems.push(Problem::Conflict(format!(
                "invalid value '{address}' for {name}: whoever reaches it could do everything; expected a loopback \
                 address, or a key in {}, {} or api_key",
                flag("api_key"),
                variable("api_key"),
            )));
        }
        if address.overlaps(clients) {
            self.problems.push(Problem::Conflict(format!(
                "invalid value '{address}' for {name}: clients connect there ({}); expected another port",
                self.origin("port").name_of("port"),
            )));
        }
        config.api_key = key.map(Arc::new);
        config.allowed_origins = node.origins.clone();
        config.max_body_bytes = node.listener.max_message_bytes;
        config.max_json_depth = node.max_json_depth;
        Some(ApiSettings { address, config })
    }
}

/// What was said of the cluster.
struct ClusterSources {
    url: Option<ClusterUrl>,
    prefix: String,
    queue_bytes: usize,
    ready_alone: bool,
    credentials: Option<PathBuf>,
    ca: Option<PathBuf>,
}

/// Whether a text can stand behind `Bearer` in a header.
fn is_bearer(key: &[u8]) -> bool {
    !key.is_empty() && key.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::FromArgMatches;

    use super::*;

    fn settings(flags: &[&str]) -> Result<Settings, String> {
        let matches = Options::parser().get_matches_from(flags);
        assert!(Options::from_arg_matches(&matches).is_ok());
        Layers::gather([&matches], []).and_then(resolve).map_err(|problems| {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n")
        })
    }

    fn check_problem(flags: &[&str], expected: &str) {
        match settings(flags) {
            Ok(settings) => panic!("{flags:?} gave {settings:?}"),
            Err(problems) => assert!(problems.starts_with(expected), "{problems}"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.address.to_string(), "localhost:8080");
        assert_eq!(settings.node.listener.paths, ["/", "/ws"]);
        assert_eq!(settings.api.map(|api| api.address.to_string()), Some("127.0.0.1:8081".to_owned()));
        assert_eq!(settings.node.listener.max_connections, 1000);
        assert_eq!(settings.node.listener.max_connections_per_ip, None);
        assert_eq!(settings.node.listener.max_message_bytes, 65_536);
        assert_eq!(settings.node.listener.max_queue_bytes, 1_048_576);
        assert_eq!(settings.node.listener.handshake_timeout, Duration::from_secs(10));
        assert_eq!(settings.node.listener.ping_interval, Duration::from_secs(25));
        assert_eq!(settings.node.listener.pong_timeout, Duration::from_secs(10));
        assert_eq!(settings.node.max_subscriptions, 128);
        assert_eq!(
            settings.node.rate_limit.map(|limit| (limit.per_second.get(), limit.burst.get())),
            Some((100, 200))
        );
        let compression = settings.node.listener.compression;
        assert!(compression.enabled && !compression.client_context_takeover);
        assert_eq!((compression.threshold_bytes, compression.level), (256, 2));
        assert_eq!(settings.drain_timeout, Duration::from_secs(30));
        assert_eq!(settings.warnings, [""; 0]);
        assert!(settings.shown.iter().all(|shown| shown.origin == Origin::Default));
    }

    #[test]
    fn every_setting_but_the_file_is_shown() {
        let shown: Vec<_> = settings(&[]).unwrap().shown.iter().map(|shown| shown.key).collect();
        assert_eq!(shown, Options::keys()[1..]);
    }

    #[test]
    fn zero_switches_a_rate_or_a_limit_of_addresses_off() {
        let settings =
            settings(&["--rate-limit=0", "--max-connections-per-ip=0", "--ping-interval=0"]).unwrap();
        assert_eq!(settings.node.rate_limit, None);
        assert_eq!(settings.node.listener.max_connections_per_ip, None);
        assert!(settings.node.listener.ping_interval.is_zero());
    }

    #[test]
    fn timeouts_must_leave_some_time() {
        check_problem(&["--pong-timeout=0"], "invalid value '0s' for --pong-timeout: expected more than");
        check_problem(
            &["--handshake-timeout=0ms"],
            "invalid value '0s' for --handshake-timeout: expected more",
        );
        assert!(settings(&["--drain-timeout=0"]).is_ok_and(|settings| settings.drain_timeout.is_zero()));
    }

    #[test]
    fn origins_are_checked() {
        check_problem(
            &["--allowed-origin=https://a.example,app.example"],
            "invalid value 'app.example' for --allowed-origin: expected ",
        );
        assert!(settings(&["--allowed-origin=https://*.example.com", "--allowed-origin=*"]).is_ok());
    }

    #[test]
    fn the_api_takes_bodies_as_large_as_messages_from_the_same_pages() {
        let settings = settings(&["--max-message-bytes=5", "--allowed-origin=https://a.example"]).unwrap();
        let api = settings.api.unwrap().config;
        assert_eq!(api.max_body_bytes, 5);
        assert!(api.allowed_origins.check(Some("https://a.example"), Some("127.0.0.1:8081"), false).is_ok());
        assert!(api.allowed_origins.check(Some("https://b.example"), Some("127.0.0.1:8081"), false).is_err());
    }

    #[test]
    fn api_off_loopback_needs_a_key() {
        check_problem(
            &["--api-listen=0.0.0.0:8081"],
            "invalid value '0.0.0.0:8081' for --api-listen: whoever reaches it could do everything; expected a \
             loopback address, or a key in --api-key, DEEPERHUB_API_KEY or api_key",
        );
        check_problem(&["--api-listen=hub.example.com:8081"], "invalid value 'hub.example.com:8081'");
        assert!(settings(&["--api-listen=0.0.0.0:8081", "--api-key=k"]).is_ok());
        assert!(settings(&["--api-listen=[::1]:8081"]).is_ok());
        assert!(settings(&["--api-listen=off"]).is_ok_and(|settings| settings.api.is_none()));
    }

    #[test]
    fn a_key_that_fits_no_header_is_refused_and_not_shown() {
        for key in ["", "with space", "schlüssel", "line\nfeed"] {
            let problem = settings(&[&format!("--api-key={key}")]).unwrap_err();
            assert!(problem.starts_with("invalid value for --api-key (not shown"), "{problem}");
            assert!(key.is_empty() || !problem.contains(key), "{problem}");
        }
    }

    #[test]
    fn requiring_tokens_needs_keys() {
        check_problem(
            &["--auth-required"],
            "--auth-required needs keys to check tokens with: expected --auth-secret-file, --auth-jwks-file or both",
        );
        assert!(settings(&["--auth-required=false"]).is_ok());
    }

    #[test]
    fn files_without_keys_are_named_with_what_would_be_right() {
        check_problem(
            &["--auth-secret-file=/nowhere/secret"],
            "invalid value '/nowhere/secret' for --auth-secret-file: it cannot be read: No such file",
        );
        check_problem(
            &["--auth-jwks-file=/dev/null"],
            "invalid value '/dev/null' for --auth-jwks-file: it is not a JSON object in which each key stands once; a \
             JWKS is",
        );
        let both = settings(&["--auth-jwks-file=/dev/null", "--auth-secret-file=/dev/null"]).unwrap_err();
        assert!(both.contains("--auth-jwks-file") && both.contains("the secret is empty; at least 32"));
    }

    #[test]
    fn what_concerns_tokens_is_pointless_without_keys() {
        let settings = settings(&["--auth-audience=hub", "--auth-issuer=me"]).unwrap();
        assert_eq!(settings.warnings.len(), 2);
        assert!(settings.warnings[0].starts_with("--auth-audience means nothing"), "{settings:?}");
    }

    #[test]
    fn networks_of_proxies_are_checked() {
        check_problem(
            &["--trusted-proxy=10.0.0.0/8,10.0.0.1/8"],
            "invalid value '10.0.0.1/8' for --trusted-proxy: its network is 10.0.0.0/8",
        );
        let settings = settings(&["--trusted-proxy=10.0.0.0/8", "--trusted-proxy=::1"]).unwrap();
        assert!(settings.node.listener.trusted_proxies.trusts("::1".parse().unwrap()));
    }

    #[test]
    fn a_certificate_needs_its_key_and_the_reverse() {
        check_problem(
            &["--tls-cert=cert.pem"],
            "--tls-cert needs --tls-key, DEEPERHUB_TLS_KEY or tls_key as well",
        );
        check_problem(&["--tls-key=key.pem"], "--tls-key needs --tls-cert, DEEPERHUB_TLS_CERT or tls_cert");
        check_problem(&["--tls-client-ca=ca.pem"], "--tls-client-ca needs --tls-cert");
        check_problem(
            &["--tls-client-auth=optional"],
            "--tls-client-auth needs --tls-client-ca, DEEPERHUB_TLS_CLIENT_CA or tls_client_ca as well",
        );
        check_problem(
            &["--tls-cert=c.pem", "--tls-key=k.pem", "--tls-client-auth=required"],
            "--tls-client-auth needs --tls-client-ca",
        );
        check_problem(&["--tls-cert=c.pem", "--tls-client-ca=ca.pem"], "--tls-cert needs --tls-key");
    }

    #[test]
    fn a_cluster_is_told_by_its_broker() {
        let settings =
            settings(&["--cluster=nats://u:hunter2@h:4222", "--cluster-unavailable=ready"]).unwrap();
        let cluster = settings.node.cluster.as_ref().unwrap();
        assert!(cluster.ready_alone);
        assert_eq!(cluster.broker.prefix, "deeperhub");
        let shown = settings.show().to_string();
        assert!(shown.contains("cluster = \"nats://u:********@h:4222\""), "{shown}");
        assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
    }

    #[test]
    fn what_is_wrong_with_a_cluster_is_told_without_its_password() {
        check_problem(
            &["--cluster=natz://u:hunter2@h"],
            "invalid value for --cluster (not shown, as it is secret): expected the scheme nats, tls",
        );
        check_problem(
            &["--cluster=nats://h", "--cluster-prefix=a.b"],
            "invalid value 'a.b' for --cluster-prefix: expected 1 to 64 of",
        );
        check_problem(
            &["--cluster-ca=/x"],
            "--cluster-ca is set and there is no cluster; expected a broker in --cluster",
        );
        check_problem(
            &["--cluster=redis://h", "--cluster-credentials=/dev/null"],
            "invalid value '/dev/null' for --cluster-credentials: expected none with a broker that is not NATS",
        );
        check_problem(
            &["--cluster=nats://h", "--cluster-credentials=/no/such"],
            "invalid value '/no/such' for --cluster-credentials: expected a file that can be read",
        );
    }

    #[test]
    fn both_listeners_on_one_port_are_refused() {
        check_problem(
            &["--api-listen=127.0.0.1:8080"],
            "invalid value '127.0.0.1:8080' for --api-listen: clients connect there",
        );
        assert!(settings(&["--port=0", "--api-listen=127.0.0.1:0"]).is_ok());
    }

    #[test]
    fn listening_off_loopback_is_warned_about() {
        let settings = settings(&["--host=0.0.0.0"]).unwrap();
        assert_eq!(settings.warnings.len(), 1);
        assert!(settings.warnings[0].starts_with("--host is 0.0.0.0, which is not loopback"), "{settings:?}");
    }

    #[test]
    fn an_address_has_a_rate_of_new_connections_by_default() {
        let rate = |flags: &[&str]| {
            let rate = settings(flags).unwrap().node.listener.connection_rate_per_ip;
            rate.map(|rate| (rate.per_second.get(), rate.burst.get()))
        };
        assert_eq!(rate(&[]), Some((200, 1000)));
        assert_eq!(rate(&["--connection-rate-per-ip=5"]), Some((5, 25)));
        assert_eq!(rate(&["--connection-rate-per-ip=0"]), None);
    }

    #[test]
    fn tokens_that_fit_nowhere_are_warned_about() {
        let warnings = |flags: &[&str]| settings(flags).unwrap().warnings;
        assert_eq!(warnings(&["--max-token-bytes=30000"]), [""; 0]);
        assert_eq!(warnings(&["--max-handshake-bytes=600"]), [""; 0]);
        let warned = warnings(&["--max-token-bytes=70000"]);
        assert!(
            warned[0].starts_with("--max-token-bytes is 70000 bytes, and --max-handshake-bytes"),
            "{warned:?}"
        );
        assert!(warned[1].contains("--max-message-bytes takes 65536"), "{warned:?}");
    }

    #[test]
    fn a_queue_smaller_than_a_message_is_warned_about() {
        let settings = settings(&["--max-queue-bytes=1000"]).unwrap();
        assert!(settings.warnings[0].starts_with("--max-queue-bytes is 1000 bytes"), "{settings:?}");
    }
}
