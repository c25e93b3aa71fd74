//! Checks of a server that a node makes at each of its connections.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{SystemTime, UNIX_EPOCH};

use deeperhub_cluster::{BrokerUrl, Config, StoreFinding, check_broker, check_store};
use serde_json::json;

use super::server::Server;
use crate::node::Node;
use crate::store::Store;
use crate::{WAIT_TIMEOUT, eventually, wait};

/// Counts the changes of streams while a function runs.
fn count_changes(server: &Server, run: impl FnOnce()) -> usize {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream.write_all(b"CONNECT {}\r\nSUB $JS.EVENT.ADVISORY.STREAM.> 1\r\nPING\r\n").unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "PONG"));
    run();
    // Events of the server are in the order of its handling.
    stream.write_all(b"PUB $JS.EVENT.ADVISORY.STREAM.END 0\r\n\r\n").unwrap();
    lines
        .filter(|line| line.starts_with("MSG "))
        .take_while(|line| !line.contains("STREAM.END"))
        .filter(|line| line.contains(".CREATED.") || line.contains(".DELETED."))
        .count()
}

#[test]
fn a_server_that_has_proved_itself_needs_no_further_stream() {
    let Some(mut server) = Server::start() else { return };
    let node = Node::join(&server.url(), "a");
    // The stream of its rule is there before changes are counted.
    node.store("t", 1);
    let check = || assert_eq!(wait(node.broker.check_store()), Ok(Vec::new()));
    assert_eq!(count_changes(&server, check), 2);
    assert_eq!(count_changes(&server, check), 0);
    // Another run of the server may have other settings.
    server.kill();
    server.start_again();
    assert_eq!(count_changes(&server, check), 2);
}

#[test]
fn checks_at_the_same_time_do_not_disturb_each_other() {
    let Some(server) = Server::start() else { return };
    let check = || wait(check_store(&server.config()));
    // Streams of checks that were broken off. One of them has just begun.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let other = |epoch: u128| {
        let stream = format!("deeperhub_h_-store-check-1-0123456789abcdef_{epoch}");
        let settings = json!({ "name": stream, "subjects": [format!("deeperhub.h.{epoch}.>")] });
        assert!(server.api(&format!("STREAM.CREATE.{stream}"), &settings)["config"].is_object());
        stream
    };
    let (_old, young) = (other(now - 600_000), other(now));
    std::thread::scope(|scope| {
        let checks: Vec<_> = (0..6).map(|_| scope.spawn(check)).collect();
        checks.into_iter().for_each(|check| assert_eq!(check.join().unwrap(), Ok(Vec::new())));
    });
    assert_eq!(server.streams(), [young]);
}

fn users(publish: &str) -> String {
    let rights = format!("publish: [{publish}], subscribe: [\">\"]");
    format!(
        "authorization {{ users: [\n{{ user: admin, password: secret }}\n\
         {{ user: hub, password: secret, permissions: {{ {rights} }} }}\n] }}"
    )
}

#[test]
fn a_right_that_was_taken_away_is_named() {
    let Some(server) = Server::start_with_admin(&users("\">\"")) else { return };
    let node = Node::join(&server.url_of("hub"), "a");
    let check = || wait(node.broker.check_store()).unwrap_or_default();
    assert_eq!(check(), []);
    for lacking in ["STREAM.CREATE.*", "DIRECT.GET.*", "CONSUMER.CREATE.*.*", "FC.>"] {
        let rights = [
            "deeperhub.>",
            "$JS.API.INFO",
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.CREATE.*",
            "$JS.API.STREAM.UPDATE.*",
            "$JS.API.STREAM.INFO.*",
            "$JS.API.STREAM.DELETE.*",
            "$JS.API.STREAM.MSG.GET.*",
            "$JS.API.DIRECT.GET.*",
            "$JS.API.CONSUMER.CREATE.*.*",
            "$JS.FC.>",
        ];
        let rights: Vec<_> = rights
            .iter()
            .filter(|right| !right.ends_with(lacking))
            .map(|right| format!("\"{right}\""))
            .collect();
        server.reload_with(&users(&rights.join(", ")));
        let subject = lacking.split('*').next().unwrap_or_default().trim_end_matches('>');
        eventually("the missing right", || {
            let findings = check();
            matches!(&findings[..], [StoreFinding::MissingRight(right)] if right.contains(subject))
        });
    }
}

#[test]
fn a_refused_user_is_told() {
    let Some(server) = Server::start_with_admin(&users("\">\"")) else { return };
    let url = server.url_of("hub").replace("secret", "wrong");
    let config = Config::new(BrokerUrl::parse(&url).unwrap());
    for findings in [wait(check_store(&config)), wait(check_broker(&config))] {
        let findings = findings.unwrap();
        assert!(
            matches!(&findings[..], [finding @ StoreFinding::LoginRefused(_)] if finding.is_lasting()),
            "{findings:?}"
        );
    }
}
