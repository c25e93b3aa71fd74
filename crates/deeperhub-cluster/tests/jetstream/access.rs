//! Rights that a server must grant, and the check of them.

use deeperhub_cluster::{Append, BrokerUrl, Config, Once, ResetStream, ResetWhen, StoreFinding, check_store};

use crate::node::{LIMITS, Node, contents, message, read, topic};
use crate::server::{Server, old_program};
use crate::wait;

fn check(url: &str) -> Vec<StoreFinding> {
    wait(check_store(&Config::new(BrokerUrl::parse(url).unwrap()))).unwrap()
}

/// Returns the rights of a user that the crate's README lists.
fn documented_rights() -> (Vec<String>, Vec<String>) {
    let readme = include_str!("../../README.md");
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
    let node = Node::join(&url, "a");
    node.follow("t");
    node.broker.change_interest(&"rooms.*".into(), deeperhub_cluster::InterestChange::Gained);
    assert_eq!(wait(node.broker.check_store()), Ok(Vec::new()));
    let once = Some(Once { user: Some("ada"), text: "x" });
    let position = node.store_with(1, Append { once, ..message("t", "1") });
    assert_eq!(node.receive(1).len(), 1);
    assert_eq!(contents(&node.read(read("t", None, 9))), [(1, "1".to_owned())]);
    wait(node.broker.read_tops(vec![topic("t")], Some(LIMITS)).unwrap()).unwrap();
    let reset =
        ResetStream { topic: topic("t"), known: Some(position), limits: LIMITS, when: ResetWhen::Always };
    assert!(wait(node.broker.reset_stream(reset).unwrap()).unwrap().epoch > position.epoch);
    assert!(node.broker.is_up());
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
    let Some(server) = Server::start(accounts) else { return };
    let findings = check(&server.url_of("hub"));
    assert!(matches!(&findings[..], [StoreFinding::NoJetStream(_)]), "{findings:?}");
    assert_eq!(check(&server.url_of("other")), []);
}

#[test]
fn an_old_server_is_told() {
    let Some(program) = old_program() else { return };
    let server = Server::start_program(&program, "jetstream { store_dir: \"FOLDER/js\" }");
    let findings = check(&server.url());
    let [finding @ StoreFinding::OldVersion { version, .. }] = &findings[..] else { panic!("{findings:?}") };
    assert!(version.starts_with("2."), "{version}");
    assert!(finding.to_string().contains("NATS 2.11 or later"), "{finding}");
}

#[test]
fn too_few_servers_for_the_replicas_are_told() {
    let Some(server) = Server::start("") else { return };
    let mut config = Config::new(BrokerUrl::parse(&server.url()).unwrap());
    config.stream_replicas = 3;
    let findings = wait(check_store(&config)).unwrap();
    assert!(
        matches!(&findings[..], [StoreFinding::Refused(reason)] if reason.contains("replicas")),
        "{findings:?}"
    );
}

#[test]
fn an_unreachable_server_is_an_error() {
    assert!(wait(check_store(&Config::new(BrokerUrl::parse("nats://127.0.0.1:1").unwrap()))).is_err());
}
