//! NATS servers with users: rights, credentials, TLS, and what `config check` says of them.

use serde_json::json;

use super::streams::{RULE, Received, publish_range, subscribe_with, subscriber};
use super::{eventually, metric, nodes};
use crate::support::{
    Authority, Broker, Client, Engine, Finished, Identity, ROOT, TemporaryDir, free_port, has_brokers, http,
    run, text,
};

/// Returns the rights to publish and to subscribe that the README of deeperhub-cluster lists.
fn documented_rights() -> [Vec<String>; 2] {
    let readme = std::fs::read_to_string(format!("{ROOT}/crates/deeperhub-cluster/README.md"));
    let readme = readme.expect("the README exists");
    ["publish", "subscribe"].map(|kind| {
        let list = readme.split(&format!("  {kind}: [")).nth(1).expect("the README lists rights");
        let list = list.split(']').next().unwrap_or_default();
        list.split(',').map(|right| right.trim().to_owned()).collect()
    })
}

/// Starts a server that keeps streams, whose only user has a password and some rights.
fn start([publish, subscribe]: &[Vec<String>; 2], identity: Option<&Identity>) -> (Broker, TemporaryDir) {
    let files = TemporaryDir::new();
    let rights = format!("publish: [{}], subscribe: [{}]", publish.join(", "), subscribe.join(", "));
    let user = format!("{{ user: hub, password: s3cret, permissions: {{ {rights} }} }}");
    let settings = files.write("nats.conf", &format!("authorization {{ users: [ {user} ] }}\n"));
    let broker = Broker::start_with_streams_and(Engine::Nats, identity, &["-c", text(&settings)]);
    (broker, files)
}

fn url_of(broker: &Broker, password: &str) -> String {
    broker.url().replace("://", &format!("://hub:{password}@"))
}

#[tokio::test]
async fn nodes_keep_history_over_tls_with_the_documented_rights() {
    if !has_brokers() {
        return;
    }
    let authority = Authority::new();
    let (broker, _files) = start(&documented_rights(), Some(&authority.server("broker")));
    let url = url_of(&broker, "s3cret");
    let probes = ["--canary-interval", "200ms", "--canary-timeout", "2s"];
    let flags = [RULE, &probes, &["--cluster-ca", text(&authority.cert)]].concat();
    let checked = run(&[&["config", "check", "--cluster", &url], &flags[..]].concat(), &[]);
    assert_eq!((checked.code, &*checked.stderr), (Some(0), ""), "{checked:?}");

    let [a, b] = nodes(&url, &flags).await;
    let (mut client, start) = subscriber(&b, json!({"topic": "kept.1"})).await;
    let mut pattern = Client::connect(&b).await;
    subscribe_with(&mut pattern, json!({"topic": "kept.*"})).await;
    let mut publisher = Client::connect(&a).await;
    publish_range(&mut publisher, "kept.1", 0..5).await;
    Received::default().read(&mut client, 5).await;
    Received::default().read(&mut pattern, 5).await;
    let once = json!({"type": "publish", "id": 1, "data": {"topic": "kept.1", "message": 5, "once": "x"}});
    let published = publisher.request(&once).await;
    assert_eq!(publisher.request(&once).await["data"]["offset"], published["data"]["offset"]);
    drop(client);
    let recover = json!({"epoch": start["epoch"], "offset": 2});
    let (mut client, reply) = subscriber(&a, json!({"topic": "kept.1", "recover": recover})).await;
    assert_eq!((&reply["recovered"], &reply["replay"]), (&json!(true), &json!(4)), "{reply}");
    Received::default().read(&mut client, 4).await;
    assert_eq!(http(b.api(), "DELETE /v1/topics/kept.1/messages", &[], "").await.status, 204);
    assert_eq!(client.receive().await["data"]["reason"], "epoch");
    for node in [&a, &b] {
        let round_trips = "deeperhub_canary_store_round_trip_seconds_count";
        eventually("probes of the store", async || metric(node, round_trips).await > 1).await;
        assert!(!node.stderr().contains("ermissions"), "{}", node.stderr());
    }
}

/// Runs `config check`.
fn check(url: &str, flags: &[&str]) -> Finished {
    run(&[&["config", "check", "--cluster", url], flags].concat(), &[])
}

#[test]
fn the_check_names_what_a_user_lacks() {
    if !has_brokers() {
        return;
    }
    let [publish, subscribe] = documented_rights();
    let without = |rights: &[String], lacking: &str| -> Vec<String> {
        rights.iter().filter(|right| !right.contains(lacking)).cloned().collect()
    };
    let (broker, _files) = start(&[without(&publish, "STREAM.CREATE"), subscribe.clone()], None);
    let checked = check(&url_of(&broker, "s3cret"), RULE);
    assert_eq!(checked.code, Some(2), "{checked:?}");
    let expected =
        "the broker of the cluster cannot keep history: the user lacks a permission that nodes need: ";
    assert!(checked.stderr.contains(expected) && checked.stderr.contains("STREAM.CREATE"), "{checked:?}");
    // Without history, nodes need less.
    let checked = check(&url_of(&broker, "s3cret"), &[]);
    assert_eq!((checked.code, &*checked.stderr), (Some(0), ""), "{checked:?}");
    for flags in [RULE, &[]] {
        let wrong = check(&url_of(&broker, "wrong"), flags);
        assert_eq!(wrong.code, Some(2), "{wrong:?}");
        assert!(wrong.stderr.contains("the server refused the user or the password"), "{wrong:?}");
        assert!(!wrong.stderr.contains(":wrong@"), "{wrong:?}");
    }

    for (rights, named) in [
        ([without(&publish, "deeperhub.t.>"), subscribe.clone()], "Publish to \"deeperhub.t."),
        ([publish.clone(), without(&subscribe, "deeperhub.a")], "Subscription to \"deeperhub.a"),
    ] {
        let (broker, _files) = start(&rights, None);
        let checked = check(&url_of(&broker, "s3cret"), &[]);
        assert_eq!(checked.code, Some(2), "{checked:?}");
        let expected =
            "the broker of the cluster cannot be used: the user lacks a permission that nodes need: ";
        assert!(checked.stderr.contains(expected) && checked.stderr.contains(named), "{checked:?}");
    }
}

#[test]
fn the_check_warns_of_a_server_that_is_not_reached() {
    for (flags, purpose) in [(RULE, "can keep history"), (&[], "can be used")] {
        let nobody = check(&format!("nats://127.0.0.1:{}", free_port()), flags);
        assert_eq!(nobody.code, Some(0), "{nobody:?}");
        assert!(nobody.stderr.contains(&format!("it was not checked whether it {purpose}")), "{nobody:?}");
    }
    // A server that accepts connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it listens");
    let checked = check(&format!("nats://{address}"), &[]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stderr.contains("the server did not answer in time"), "{checked:?}");
}
