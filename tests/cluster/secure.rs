//! Brokers with TLS, and brokers with authentication.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::{
    eventually, names_of_nodes, node, nodes, subscribed, wait_until_linked, wait_until_ready,
    wait_until_unready,
};
use crate::support::{Authority, Broker, Engine, TemporaryDir, has_brokers, run, text};

/// Checks that a message passes between two nodes of a broker.
async fn check_linked(url: &str, flags: &[&str]) {
    let [a, b] = nodes(url, flags).await;
    let mut remote = subscribed(&b, &["t", "t.*"]).await;
    wait_until_linked(&a, "t", &mut remote).await;
    wait_until_linked(&a, "t.x", &mut remote).await;
}

/// Checks that a node that cannot use the broker reports why and serves its own clients.
async fn check_refused(url: &str, flags: &[&str], reasons: &[&str]) {
    let mut all = vec!["--log-level", "debug"];
    all.extend(flags);
    let a = node(url, "refused", &all);
    wait_until_unready(&a).await;
    // The first attempt may not have ended yet.
    a.wait_for_stderr("Broker unreachable");
    let log = a.stderr();
    assert!(reasons.iter().any(|reason| log.contains(reason)), "none of {reasons:?} in {log}");
    assert_eq!(log.matches("Broker unreachable").count(), 1, "{log}");
    let mut client = subscribed(&a, &["t"]).await;
    super::publish(&a, "t", "1").await;
    assert_eq!(client.receive().await["data"]["message"], 1);
}

#[tokio::test]
async fn broker_certificates_are_checked_against_the_configured_authority() {
    for engine in Engine::BOTH {
        let authority = Authority::new();
        let broker = Broker::start_over_tls(engine, &authority.server("broker"));
        let ca = text(&authority.cert).to_owned();
        check_linked(&broker.url(), &["--cluster-ca", &ca]).await;
        // Certificates are valid for host names too.
        check_linked(&broker.url().replace("127.0.0.1", "localhost"), &["--cluster-ca", &ca]).await;
    }
}

#[tokio::test]
async fn a_broker_with_a_certificate_of_another_authority_is_refused() {
    for engine in Engine::BOTH {
        let authority = Authority::new();
        let broker = Broker::start_over_tls(engine, &authority.server("broker"));
        let other = Authority::new();
        let reasons = ["UnknownIssuer", "invalid peer certificate"];
        check_refused(&broker.url(), &["--cluster-ca", text(&other.cert)], &reasons).await;
        // The system's trust store does not contain the authority either.
        check_refused(&broker.url(), &[], &reasons).await;
        // A client certificate is valid for no host name.
        let nameless = Broker::start_over_tls(engine, &authority.client("nameless"));
        check_refused(
            &nameless.url(),
            &["--cluster-ca", text(&authority.cert)],
            &["invalid peer certificate"],
        )
        .await;
    }
}

/// Checks that `config check` and `serve` reject the settings before they connect.
fn check_invalid(url: &str, flags: &[&str], named: &[&str]) {
    for action in [&["config", "check"][..], &["serve"]] {
        let finished = run(&[action, &["--cluster", url], flags].concat(), &[]);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        for text in named {
            assert!(finished.stderr.contains(text), "{text:?} is not in: {}", finished.stderr);
        }
    }
}

#[test]
fn an_authority_file_without_certificates_is_rejected() {
    let files = TemporaryDir::new();
    let none = files.write("none.pem", "no certificate\n");
    for url in ["tls://127.0.0.1:4222", "rediss://127.0.0.1:6379"] {
        let named = ["none.pem", "--cluster-ca", "certificates in PEM"];
        check_invalid(url, &["--cluster-ca", text(&none)], &named);
    }
}

#[test]
fn a_credentials_file_without_credentials_is_rejected() {
    let files = TemporaryDir::new();
    for content in ["-----BEGIN NATS USER JWT-----\nnothing\n", "SUnothing", "", "s3cret\n"] {
        let broken = files.write("broken.creds", content);
        let flags = ["--cluster-credentials", text(&broken)];
        check_invalid("nats://127.0.0.1:4222", &flags, &["broken.creds", "--cluster-credentials"]);
    }
}

#[tokio::test]
async fn a_mismatch_of_plaintext_and_tls_is_logged() {
    if !has_brokers() {
        return;
    }
    for engine in Engine::BOTH {
        let plain = Broker::start(engine);
        let over_tls = match engine {
            Engine::Nats => plain.url().replace("nats://", "tls://"),
            Engine::Redis => plain.url().replace("redis://", "rediss://"),
        };
        check_refused(&over_tls, &[], &["does this port speak TLS", "InvalidContentType"]).await;
    }
    // NATS asks for TLS in clear text and gets it; Redis ends the connection.
    let authority = Authority::new();
    let broker = Broker::start_over_tls(Engine::Redis, &authority.server("broker"));
    check_refused(&broker.url().replace("rediss://", "redis://"), &[], &["does this port want TLS"]).await;
    let broker = Broker::start_over_tls(Engine::Nats, &authority.server("broker"));
    check_linked(&broker.url().replace("tls://", "nats://"), &["--cluster-ca", text(&authority.cert)]).await;
}

#[tokio::test]
async fn an_nkey_authenticates_to_nats() {
    if !has_brokers() {
        return;
    }
    let files = TemporaryDir::new();
    let user = KeyPair::new_user();
    let config = format!("authorization {{ users = [ {{ nkey: {} }} ] }}\n", user.public_key());
    let config = files.write("nats.conf", &config);
    let broker = Broker::start_with(Engine::Nats, &["-c", text(&config)]);
    let seed = files.write("hub.nk", &format!("{}\n", user.seed().unwrap()));
    check_linked(&broker.url(), &["--cluster-credentials", text(&seed)]).await;
    let stranger = files.write("stranger.nk", &KeyPair::new_user().seed().unwrap());
    check_refused(&broker.url(), &["--cluster-credentials", text(&stranger)], &["authorization violation"])
        .await;
    check_refused(&broker.url(), &[], &["authorization violation", "nkey"]).await;
}

/// Returns a NATS token: a JWT signed with an nkey.
fn nats_token(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let claims = part(json!({
        "jti": name,
        "iat": 1_700_000_000,
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": name,
        "nats": nats,
    }));
    let signature = issuer.sign(format!("{header}.{claims}").as_bytes()).expect("a seed signs");
    format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_credentials_file_authenticates_to_nats() {
    if !has_brokers() {
        return;
    }
    let files = TemporaryDir::new();
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let operator_token =
        nats_token(&operator, &operator, "operator", json!({"type": "operator", "version": 2}));
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    });
    let account_claims = json!({"type": "account", "version": 2, "limits": limits});
    let account_token = nats_token(&operator, &account, "account", account_claims);
    let config = format!(
        "operator: {operator_token}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_token} }}\n",
        account.public_key()
    );
    let config = files.write("nats.conf", &config);
    let broker = Broker::start_with(Engine::Nats, &["-c", text(&config)]);

    // Exactly the permissions that the book lists.
    let allowed = json!({"allow": ["deeperhub.>"]});
    let rights = json!({
        "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": allowed, "sub": allowed,
    });
    let credentials = |issuer: &KeyPair| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            nats_token(issuer, &user, "hub", rights.clone()),
            user.seed().expect("a user has a seed"),
        )
    };
    let good = files.write("hub.creds", &credentials(&account));
    check_linked(&broker.url(), &["--cluster-credentials", text(&good)]).await;
    let forged = files.write("forged.creds", &credentials(&KeyPair::new_account()));
    check_refused(&broker.url(), &["--cluster-credentials", text(&forged)], &["authorization violation"])
        .await;
}

#[tokio::test]
async fn a_token_authenticates_to_nats() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start_with(Engine::Nats, &["--auth", "s3cret"]);
    let url = |token: &str| broker.url().replace("://", &format!("://{token}@"));
    check_linked(&url("s3cret"), &[]).await;
    check_refused(&url("other"), &[], &["authorization violation"]).await;
}

#[tokio::test]
async fn a_redis_user_needs_few_permissions() {
    if !has_brokers() {
        return;
    }
    let user = "hub on >s3cret resetchannels &* -@all \
                +publish +subscribe +psubscribe +unsubscribe +punsubscribe";
    let mut flags = vec!["--user"];
    flags.extend(user.split_whitespace());
    flags.extend(["--user", "default", "off"]);
    let broker = Broker::start_with(Engine::Redis, &flags);
    let url = |password: &str| broker.url().replace("://", &format!("://hub:{password}@"));
    check_linked(&url("s3cret"), &[]).await;
    check_refused(&url("wrong"), &[], &["WRONGPASS", "Password authentication failed"]).await;
    check_refused(&broker.url(), &[], &["NOAUTH", "Authentication required"]).await;
    eventually("a node that may", async || {
        let a = node(&url("s3cret"), "a", &[]);
        wait_until_ready(&a).await;
        names_of_nodes(&a).await == ["a"]
    })
    .await;
}
