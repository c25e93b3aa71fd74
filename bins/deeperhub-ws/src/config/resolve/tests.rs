//! Tests of settings that are resolved from flags.

use std::time::Duration;

use clap::FromArgMatches;

use super::resolve;
use crate::config::effective::Settings;
use crate::config::layers::Layers;
use crate::config::options::Options;
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
    assert_eq!(settings.node.rate_limit, None);
    assert_eq!(settings.node.listener.max_connections_per_ip, None);
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
    assert_eq!(api.max_body_bytes, 5);
    assert!(api.allowed_origins.check(Some("https://a.example"), Some("127.0.0.1:8081"), false).is_ok());
    assert!(api.allowed_origins.check(Some("https://b.example"), Some("127.0.0.1:8081"), false).is_err());
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
