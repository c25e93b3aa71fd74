//! Rights that a server must grant, and the check of them.

use deeperhub_cluster::{BrokerUrl, Config, StoreFinding, check_store};

use super::server::{JETSTREAM, Server, old_program};
use crate::node::{Node, message};
use crate::scenarios::use_every_operation;
use crate::store::Store;
use crate::wait;

fn check(url: &str) -> Vec<StoreFinding> {
    wait(check_store(&Config::new(BrokerUrl::parse(url).unwrap()))).unwrap()
}

/// Returns the rights of a user that the crate's README lists.
fn documented_rights() -> (Vec<String>, Vec<String>) {
    let readme = include_str!("../../../README.md");
    let list = |name: &str| -> Vec<String> {
        let list = readme.split(&format!("{name}: [")).nth(1).expect("the README lists rights");
        let list = list.split(']').next().unwrap_or_default();
        list.split(',').map(|right| right.trim().trim_matches('"').to_owned()).collect()
    };
    (list("publish"), list("subscribe"))
}

fn users(publish: &[String], subscribe: &[String]) -> String {
    let quoted =
        |rights: &[String]| rights.iter().map(|right| format!("\"{right}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "authorization {{ users: [\n{{ user: admin, password: secret }}\n{{ user: hub, password: secret, \
         permissions: {{ publish: [{}], subscribe: [{}] }} }}\n] }}",
        quoted(publish),
        quoted(subscribe)
    )
}

#[test]
fn the_documented_rights_are_enough() {
    let (publish, subscribe) = documented_rights();
    let Some(server) = Server::start_with_admin(&users(&publish, &subscribe)) else { return };
    let url = server.url_of("hub");
    assert_eq!(check(&url), []);
    assert!(server.streams().is_empty(), "the check leaves nothing");
    use_every_operation(&url);
}

#[test]
fn a_missing_right_is_named() {
    let (publish, subscribe) = documented_rights();
    let of_streams: Vec<_> =
        publish.iter().filter(|right| right.contains("$JS") || right.contains(".h.")).cloned().collect();
    assert!(of_streams.len() >= 8, "{of_streams:?}");
    for missing in &of_streams {
        let rest: Vec<_> = publish.iter().filter(|right| *right != missing).cloned().collect();
        let Some(server) = Server::start_with_admin(&users(&rest, &subscribe)) else { return };
        let findings = check(&server.url_of("hub"));
        let subject = missing.split(['*', '>']).next().unwrap();
        assert!(
            findings.iter().any(
                |finding| matches!(finding, StoreFinding::MissingRight(right) if right.contains(subject))
                    && finding.is_error()
                    && finding.is_lasting()
            ),
            "{missing}: {findings:?}"
        );
    }
}

#[test]
fn a_server_without_jetstream_is_told() {
    let Some(server) = Server::start_without_jetstream() else { return };
    let findings = check(&server.url());
    assert!(matches!(&findings[..], [StoreFinding::NoJetStream(_)]), "{findings:?}");
    assert!(findings[0].is_lasting());
    // Messages that are not stored still pass, and appends tell the reason.
    let node = Node::join(&server.url(), "a");
    node.append(1, message("plain", "1")).unwrap();
    assert!(node.broker.is_up());
}

#[test]
fn an_account_without_jetstream_is_told() {
    let accounts = "accounts { A: { users: [{ user: hub, password: secret }] }, \
                    B: { jetstream: enabled, users: [{ user: other, password: secret }] } }";
    let Some(server) = Server::start_with(accounts) else { return };
    let findings = check(&server.url_of("hub"));
    assert!(matches!(&findings[..], [StoreFinding::NoJetStream(_)]), "{findings:?}");
    assert_eq!(check(&server.url_of("other")), []);
}

#[test]
fn an_old_server_is_told() {
    let Some(program) = old_program() else { return };
    let server = Server::start_program(&program, JETSTREAM);
    let findings = check(&server.url());
    let [finding @ StoreFinding::OldVersion { version, .. }] = &findings[..] else { panic!("{findings:?}") };
    assert!(version.starts_with("2."), "{version}");
    assert!(finding.to_string().contains("NATS 2.11 or later"), "{finding}");
}

#[test]
fn too_few_servers_for_the_replicas_are_told() {
    let Some(server) = Server::start() else { return };
    let mut config = server.config();
    config.stream_replicas = 3;
    let findings = wait(check_store(&config)).unwrap();
    assert!(
        matches!(&findings[..], [StoreFinding::Refused(reason)] if reason.contains("replicas")),
        "{findings:?}"
    );
}
