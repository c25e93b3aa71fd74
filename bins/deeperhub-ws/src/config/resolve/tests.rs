//! Tests of settings that are resolved from flags.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::FromArgMatches;

use super::resolve;
use crate::config::effective::{OnReload, Settings};
use crate::config::layers::Layers;
use crate::config::options::{Options, SECRET_KEYS, flag};
use crate::config::origin::SettingOrigin;

fn settings(flags: &[&str]) -> Result<Settings, String> {
    let matches = Options::parser().get_matches_from(flags);
    assert!(Options::from_arg_matches(&matches).is_ok());
    Layers::read([&matches], []).and_then(resolve).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })
}

fn check_error(flags: &[&str], expected: &str) {
    match settings(flags) {
        Ok(settings) => panic!("{flags:?} gave {settings:?}"),
        Err(errors) => assert!(errors.starts_with(expected), "{errors}"),
    }
}

#[test]
fn defaults_are_as_documented() {
    let settings = settings(&[]).unwrap();
    assert_eq!(settings.address.to_string(), "localhost:8080");
    assert_eq!(settings.node.listener.paths, ["/", "/ws"]);
    assert_eq!(settings.api.map(|api| api.address.to_string()), Some("127.0.0.1:8081".to_owned()));
    assert_eq!(settings.node.listener.limits.max_connections, 1000);
    assert_eq!(settings.node.listener.limits.max_connections_per_ip, None);
    assert_eq!(settings.node.listener.limits.max_message_bytes, 65_536);
    assert_eq!(settings.node.listener.limits.max_queue_bytes, 1_048_576);
    assert_eq!(settings.node.listener.handshake_timeout, Duration::from_secs(10));
    assert_eq!(settings.node.listener.ping_interval, Duration::from_secs(25));
    assert_eq!(settings.node.listener.pong_timeout, Duration::from_secs(10));
    assert_eq!(settings.node.session.max_subscriptions, 128);
    assert_eq!(
        settings.node.session.rate_limit.map(|limit| (limit.per_second.get(), limit.burst.get())),
        Some((100, 200))
    );
    let compression = settings.node.listener.compression;
    assert!(compression.enabled && !compression.client_context_takeover);
    assert_eq!((compression.threshold_bytes, compression.level), (256, 2));
    assert_eq!(settings.drain_timeout, Duration::from_secs(30));
    assert_eq!(settings.warnings, [""; 0]);
    assert!(settings.effective.iter().all(|effective| effective.origin == SettingOrigin::Default));
}

#[test]
fn every_setting_but_the_file_is_shown() {
    let effective: Vec<_> = settings(&[]).unwrap().effective.iter().map(|effective| effective.key).collect();
    assert_eq!(effective, Options::keys()[1..]);
}

#[test]
fn zero_disables_a_rate_or_a_limit_per_address() {
    let settings = settings(&["--rate-limit=0", "--max-connections-per-ip=0", "--ping-interval=0"]).unwrap();
    assert_eq!(settings.node.session.rate_limit, None);
    assert_eq!(settings.node.listener.limits.max_connections_per_ip, None);
    assert!(settings.node.listener.ping_interval.is_zero());
}

#[test]
fn timeouts_must_not_be_zero() {
    check_error(&["--pong-timeout=0"], "invalid value '0s' for --pong-timeout: expected more than 0");
    check_error(&["--handshake-timeout=0ms"], "invalid value '0s' for --handshake-timeout: expected more");
    assert!(settings(&["--drain-timeout=0"]).is_ok_and(|settings| settings.drain_timeout.is_zero()));
}

#[test]
fn origins_are_checked() {
    check_error(
        &["--allowed-origin=https://a.example,app.example"],
        "invalid value 'app.example' for --allowed-origin: expected ",
    );
    assert!(settings(&["--allowed-origin=https://*.example.com", "--allowed-origin=*"]).is_ok());
}

#[test]
fn the_api_takes_bodies_as_large_as_messages_from_the_same_pages() {
    let settings = settings(&["--max-message-bytes=5", "--allowed-origin=https://a.example"]).unwrap();
    let api = settings.api.unwrap().config;
    assert_eq!(api.limits.max_body_bytes, 5);
    assert!(
        api.limits.allowed_origins.check(Some("https://a.example"), Some("127.0.0.1:8081"), false).is_ok()
    );
    assert!(
        api.limits.allowed_origins.check(Some("https://b.example"), Some("127.0.0.1:8081"), false).is_err()
    );
}

#[test]
fn api_off_loopback_needs_a_key() {
    check_error(
        &["--api-listen=0.0.0.0:8081"],
        "invalid value '0.0.0.0:8081' for --api-listen: anyone who reaches it has full control; expected a \
         loopback address, or a key in --api-key, DEEPERHUB_API_KEY or api_key",
    );
    check_error(&["--api-listen=hub.example.com:8081"], "invalid value 'hub.example.com:8081'");
    assert!(settings(&["--api-listen=0.0.0.0:8081", "--api-key=k"]).is_ok());
    assert!(settings(&["--api-listen=[::1]:8081"]).is_ok());
    assert!(settings(&["--api-listen=off"]).is_ok_and(|settings| settings.api.is_none()));
}

#[test]
fn a_key_that_is_invalid_in_a_header_is_refused_and_not_shown() {
    for key in ["", "with space", "schlüssel", "line\nfeed"] {
        let problem = settings(&[&format!("--api-key={key}")]).unwrap_err();
        assert!(problem.starts_with("invalid value for --api-key (not shown"), "{problem}");
        assert!(key.is_empty() || !problem.contains(key), "{problem}");
    }
}

#[test]
fn requiring_tokens_needs_keys() {
    check_error(
        &["--auth-required"],
        "--auth-required needs keys to check tokens with: expected --auth-secret-file, --auth-jwks-file or both",
    );
    assert!(settings(&["--auth-required=false"]).is_ok());
}

#[test]
fn files_without_keys_are_named_with_what_is_expected() {
    check_error(
        &["--auth-secret-file=/nowhere/secret"],
        "invalid value '/nowhere/secret' for --auth-secret-file: it cannot be read: No such file",
    );
    check_error(
        &["--auth-jwks-file=/dev/null"],
        "invalid value '/dev/null' for --auth-jwks-file: it is not a JSON object with unique keys; a JWKS is",
    );
    let both = settings(&["--auth-jwks-file=/dev/null", "--auth-secret-file=/dev/null"]).unwrap_err();
    assert!(both.contains("--auth-jwks-file") && both.contains("the secret is empty; at least 32"));
}

#[test]
fn token_settings_without_keys_are_warned_about() {
    let settings = settings(&["--auth-audience=hub", "--auth-issuer=me"]).unwrap();
    assert_eq!(settings.warnings.len(), 2);
    assert!(settings.warnings[0].starts_with("--auth-audience has no effect"), "{settings:?}");
}

#[test]
fn proxy_networks_are_checked() {
    check_error(
        &["--trusted-proxy=10.0.0.0/8,10.0.0.1/8"],
        "invalid value '10.0.0.1/8' for --trusted-proxy: bits are set beyond the prefix; expected 10.0.0.0/8",
    );
    let settings = settings(&["--trusted-proxy=10.0.0.0/8", "--trusted-proxy=::1"]).unwrap();
    assert!(settings.node.listener.trusted_proxies.trusts("::1".parse().unwrap()));
}

#[test]
fn only_a_rate_without_limit_can_do_without_bursts() {
    let settings = settings(&["--rate-limit=0", "--rate-burst=0", "--byte-rate-burst=0"]).unwrap();
    assert_eq!(settings.node.session.rate_limit, None);
    assert_eq!(settings.node.session.byte_rate_limit, None);
    check_error(
        &["--rate-burst=0"],
        "invalid value '0' for --rate-burst: expected at least 1, or --rate-limit 0",
    );
    check_error(
        &["--byte-rate-limit=1", "--byte-rate-burst=0"],
        "invalid value '0' for --byte-rate-burst: expected at least 1, or --byte-rate-limit 0",
    );
}

#[test]
fn a_certificate_needs_its_key_and_vice_versa() {
    check_error(&["--tls-cert=cert.pem"], "--tls-cert needs --tls-key, DEEPERHUB_TLS_KEY or tls_key as well");
    check_error(&["--tls-key=key.pem"], "--tls-key needs --tls-cert, DEEPERHUB_TLS_CERT or tls_cert");
    check_error(&["--tls-client-ca=ca.pem"], "--tls-client-ca needs --tls-cert");
    check_error(
        &["--tls-client-auth=optional"],
        "--tls-client-auth needs --tls-client-ca, DEEPERHUB_TLS_CLIENT_CA or tls_client_ca as well",
    );
    check_error(
        &["--tls-cert=c.pem", "--tls-key=k.pem", "--tls-client-auth=required"],
        "--tls-client-auth needs --tls-client-ca",
    );
    check_error(&["--tls-cert=c.pem", "--tls-client-ca=ca.pem"], "--tls-cert needs --tls-key");
}

#[test]
fn a_broker_url_configures_a_cluster() {
    let settings = settings(&["--cluster=nats://u:hunter2@h:4222", "--cluster-unavailable=ready"]).unwrap();
    let cluster = settings.node.cluster.as_ref().unwrap();
    assert!(cluster.ready_alone);
    assert_eq!(cluster.broker.prefix, "deeperhub");
    let effective = settings.show().to_string();
    assert!(effective.contains("cluster = \"nats://u:********@h:4222\""), "{effective}");
    assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
}

#[test]
fn cluster_errors_do_not_show_the_password() {
    check_error(
        &["--cluster=natz://u:hunter2@h"],
        "invalid value for --cluster (not shown, as it is secret): expected the scheme nats, tls",
    );
    check_error(
        &["--cluster=nats://h", "--cluster-prefix=a.b"],
        "invalid value 'a.b' for --cluster-prefix: expected 1 to 64 of",
    );
    check_error(
        &["--cluster-ca=/x"],
        "--cluster-ca is set and there is no cluster; expected a broker in --cluster",
    );
    check_error(
        &["--cluster=redis://h", "--cluster-credentials=/dev/null"],
        "invalid value '/dev/null' for --cluster-credentials: expected none with a broker that is not NATS",
    );
    check_error(
        &["--cluster=nats://h", "--cluster-credentials=/no/such"],
        "invalid value '/no/such' for --cluster-credentials: expected a file that can be read",
    );
}

#[test]
fn both_listeners_on_one_port_are_refused() {
    check_error(
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
fn new_connections_per_address_are_limited_by_default() {
    let rate = |flags: &[&str]| {
        let rate = settings(flags).unwrap().node.listener.connection_rate_per_ip;
        rate.map(|rate| (rate.per_second.get(), rate.burst.get()))
    };
    assert_eq!(rate(&[]), Some((200, 1000)));
    assert_eq!(rate(&["--connection-rate-per-ip=5"]), Some((5, 25)));
    assert_eq!(rate(&["--connection-rate-per-ip=0"]), None);
}

#[test]
fn token_limits_above_other_limits_are_warned_about() {
    let warnings = |flags: &[&str]| settings(flags).unwrap().warnings;
    assert_eq!(warnings(&["--max-token-bytes=30000"]), [""; 0]);
    assert_eq!(warnings(&["--max-handshake-bytes=600"]), [""; 0]);
    let warned = warnings(&["--max-token-bytes=70000"]);
    assert!(
        warned[0].starts_with("--max-token-bytes is 70000 bytes, and --max-handshake-bytes"),
        "{warned:?}"
    );
    assert!(warned[1].contains("--max-message-bytes allows 65536"), "{warned:?}");
}

#[test]
fn a_queue_smaller_than_a_message_is_warned_about() {
    let settings = settings(&["--max-queue-bytes=1000"]).unwrap();
    assert!(settings.warnings[0].starts_with("--max-queue-bytes is 1000 bytes"), "{settings:?}");
}

/// Settings that others in [`OTHER_VALUES`] need.
const BASE: [(&str, &str); 12] = [
    ("tls_cert", "before/server.pem"),
    ("tls_key", "before/server.pkcs8.key"),
    ("tls_client_ca", "before/ca.pem"),
    ("api_tls_cert", "before/server.pem"),
    ("api_tls_key", "before/server.pkcs8.key"),
    ("auth_jwks_file", "before/jwks.json"),
    ("byte_rate_limit", "1000"),
    // The default depends on max_memory.
    ("history_bytes", "1GiB"),
    ("history_dir", "before/history"),
    ("cluster", "nats://hub:before@h"),
    ("cluster_ca", "before/ca.pem"),
    ("api_key", "before"),
];

/// Each setting, and a value that is neither its default nor that of [`BASE`].
const OTHER_VALUES: [(&str, &str); 94] = [
    ("workers", "3"),
    ("io_uring", "off"),
    ("node_id", "n"),
    ("drain_timeout", "7s"),
    ("restart_time", "7s"),
    ("host", "::1"),
    ("port", "9"),
    ("path", "/a"),
    ("probe_path", "/probe"),
    ("trusted_proxy", "10.0.0.0/8"),
    ("forwarded_header", "forwarded"),
    ("proxy_protocol", "off"),
    ("tls_cert", "after/server.pem"),
    ("tls_key", "after/server.pkcs8.key"),
    ("tls_client_ca", "after/ca.pem"),
    ("tls_client_auth", "optional"),
    ("api_listen", "127.0.0.1:9"),
    ("api_key", "after"),
    ("api_tls_cert", "after/server.pem"),
    ("api_tls_key", "after/server.pkcs8.key"),
    ("dashboard", "off"),
    ("max_api_connections", "7"),
    ("api_idle_timeout", "7s"),
    ("api_timeout", "7s"),
    ("max_api_bytes", "7"),
    ("max_event_streams", "7"),
    ("max_event_bytes", "7"),
    ("canary_interval", "7s"),
    ("canary_timeout", "7s"),
    ("max_batch_calls", "7"),
    ("max_batch_bytes", "7"),
    ("idempotency_ttl", "7s"),
    ("max_idempotency_keys", "7"),
    ("max_idempotency_bytes", "7"),
    ("auth_secret_file", "after/ca.pem"),
    ("auth_jwks_file", "after/jwks.json"),
    ("auth_required", "true"),
    ("auth_grace", "7s"),
    ("auth_audience", "a"),
    ("auth_issuer", "a"),
    ("auth_leeway", "7s"),
    ("max_token_bytes", "77"),
    ("max_connections", "7"),
    ("max_connections_per_ip", "7"),
    ("connection_rate_per_ip", "7"),
    ("max_message_bytes", "7"),
    ("max_fragments", "7"),
    ("max_json_depth", "7"),
    ("max_subscriptions", "7"),
    ("max_queue_bytes", "7"),
    ("round_bytes", "4097"),
    ("round_time", "7ms"),
    ("limits", "observe"),
    ("max_memory", "0"),
    ("reconnect_rate", "7"),
    ("rate_limit", "7"),
    ("rate_burst", "7"),
    ("byte_rate_limit", "7"),
    ("byte_rate_burst", "7"),
    ("control_rate_limit", "7"),
    ("token_rate_limit", "7"),
    ("burst_rate_per_ip", "7"),
    ("max_handshake_bytes", "777"),
    ("max_handshake_headers", "77"),
    ("handshake_timeout", "7s"),
    ("ping_interval", "7s"),
    ("pong_timeout", "7s"),
    // A cluster has no history.
    ("topic", "a.>: history=0"),
    ("history_bytes", "7"),
    ("max_streams", "7"),
    ("history_forget", "7s"),
    ("history_store", "disk"),
    ("history_dir", "after/history"),
    ("history_sync", "always"),
    ("history_disk_bytes", "7MiB"),
    ("no_compression", "true"),
    ("compression_threshold", "7"),
    ("compression_level", "7"),
    ("client_context_takeover", "true"),
    ("allowed_origin", "https://a.example"),
    ("cluster", "nats://hub:after@h"),
    ("cluster_prefix", "p"),
    ("cluster_queue_bytes", "77777"),
    ("cluster_unavailable", "ready"),
    ("cluster_credentials", "after/hub.nk"),
    ("cluster_ca", "after/ca.pem"),
    ("history_replicas", "3"),
    ("history_storage", "memory"),
    ("log_level", "warn"),
    ("log_format", "json"),
    ("log_queue_bytes", "7777"),
    ("otlp_endpoint", "http://h:4317"),
    ("trace_sample_ratio", "0.7"),
    ("trace_client_rate", "7"),
];

/// A directory in which `before` and `after` have the files of [`BASE`] and [`OTHER_VALUES`], with
/// the same contents.
struct SettingFiles(PathBuf);

impl SettingFiles {
    fn new() -> Self {
        const FIXTURES: &str =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/deeperhub-security/tests/fixtures");
        let seed = nkeys::KeyPair::new_user().seed().unwrap();
        let dir = std::env::temp_dir().join(format!("deeperhub-{}-settings", std::process::id()));
        for part in ["before", "after"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).unwrap();
            for name in ["server.pem", "server.pkcs8.key", "ca.pem", "jwks.json"] {
                fs::copy(Path::new(FIXTURES).join(name), part.join(name)).unwrap();
            }
            fs::write(part.join("hub.nk"), &seed).unwrap();
        }
        Self(dir)
    }

    /// Resolves [`BASE`], in which `changed` has another value.
    fn settings(&self, changed: Option<(&str, &str)>) -> Settings {
        let unchanged =
            BASE.into_iter().filter(|(key, _)| changed.is_none_or(|(changed, _)| changed != *key));
        let flags: Vec<String> = unchanged
            .chain(changed)
            .map(|(key, value)| match value.split_once('/') {
                Some(("before" | "after", _)) => format!("{}={}", flag(key), self.0.join(value).display()),
                _ => format!("{}={value}", flag(key)),
            })
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        settings(&flags).unwrap_or_else(|errors| panic!("{changed:?}: {errors}"))
    }
}

impl Drop for SettingFiles {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns all that a reload applies, as text.
fn applied_on_reload(settings: &Settings) -> String {
    let api = settings.api.as_ref().map(|api| &api.config.limits);
    let key = api.and_then(|api| api.api_key.as_ref()).map(|key| key.expose());
    format!("{:?} {api:?} {key:?} {:?}", settings.node.limits(), settings.log.level)
}

#[test]
fn a_setting_is_marked_as_applied_on_reload_exactly_if_it_is_part_of_what_a_reload_applies() {
    assert_eq!(OTHER_VALUES.map(|(key, _)| key).as_slice(), &Options::keys()[1..], "a setting has no value");
    let files = SettingFiles::new();
    let before = files.settings(None);
    for changed in OTHER_VALUES {
        let key = changed.0;
        let after = files.settings(Some(changed));
        let pairs = before.effective.iter().zip(&after.effective);
        let differing: Vec<_> = pairs.filter(|(one, other)| !one.has_value_of(other)).collect();
        assert_eq!(differing.iter().map(|(_, after)| after.key).collect::<Vec<_>>(), [key]);
        let setting = differing[0].1;
        let is_applied = applied_on_reload(&before) != applied_on_reload(&after);
        assert_eq!(is_applied, setting.on_reload == OnReload::Applied, "{key}");
        assert_eq!(setting.is_secret(), SECRET_KEYS.contains(&key), "{key}");
        let shows_change = differing[0].0.toml != setting.toml;
        assert_eq!(
            shows_change,
            !setting.is_secret(),
            "the value of {key} is masked exactly if it is secret"
        );
    }
}

#[test]
fn the_server_api_applies_its_settings_only_if_it_is_on() {
    let off = settings(&["--api-listen=off"]).unwrap().effective;
    for setting in settings(&[]).unwrap().effective {
        let api = ["api_key", "max_batch", "idempotency", "max_idempotency"];
        let is_of_api = api.iter().any(|start| setting.key.starts_with(start));
        let with_api_off = off.iter().find(|off| off.key == setting.key).map(|off| off.on_reload);
        let expected = if is_of_api { OnReload::RestartRequired } else { setting.on_reload };
        assert_eq!(with_api_off, Some(expected), "{}", setting.key);
    }
}
