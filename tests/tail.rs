//! `tail` as a program, against a server.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use crate::support::{Authority, Client, Server, free_port, http, run, text, wait_for};

/// A running `tail`; killed on drop.
struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    reports: Lines<BufReader<ChildStderr>>,
}

impl Tail {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_deeperhub-ws"))
            .arg("tail")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program can be started");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reports = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, reports }
    }

    async fn line(&mut self) -> String {
        wait_for("a line", self.lines.next_line()).await.unwrap().expect("it runs")
    }

    async fn report(&mut self) -> String {
        wait_for("a report", self.reports.next_line()).await.unwrap().expect("it runs")
    }
}

async fn publish(server: &Server, topic: &str, body: &str) -> Value {
    http(server.api(), &format!("POST /v1/topics/{topic}/messages"), &[], body).await.json()
}

#[tokio::test]
async fn messages_are_printed_across_a_restart_of_the_server() {
    let port = free_port().to_string();
    let listen = format!("127.0.0.1:{port}");
    let flags = ["--api-listen", &listen, "--topic", "chat.>: history=3", "--drain-timeout", "0"];
    let mut server = Server::start(&flags);
    let position = publish(&server, "chat.1", "1").await;
    publish(&server, "chat.1", "{\"text\": \"hello\",\n\"n\": 1.0}").await;

    // Flags of the server are taken too.
    let mut payloads = Tail::start(&["chat.1", "--from", "-1", "--api-listen", &listen, "--topic", "x:"]);
    let start = format!("{}:1", position["epoch"].as_str().unwrap());
    let mut whole = Tail::start(&["--json", "--from", &start, "--api-listen", &listen, "chat.1"]);
    assert_eq!(payloads.line().await, "{\"text\": \"hello\", \"n\": 1.0}");
    let data: Value = serde_json::from_str(&whole.line().await).unwrap();
    assert_eq!(
        (&data["topic"], &data["offset"], &data["epoch"]),
        (&json!("chat.1"), &json!(2), &position["epoch"])
    );

    server.signal("TERM");
    server.wait();
    let report = payloads.report().await;
    assert!(report.starts_with("connection lost, reconnecting: "), "{report}");
    let server = Server::start(&flags);
    publish(&server, "chat.1", "3").await;
    assert_eq!(payloads.line().await, "3");
    assert_eq!(payloads.report().await, "connected again");
    let report = payloads.report().await;
    assert!(report.starts_with("gap: the topic has a new epoch, "), "{report}");

    // Ctrl-C is no failure.
    for tail in [&mut payloads, &mut whole] {
        let id = tail.child.id().unwrap();
        let status = std::process::Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap();
        assert!(status.success());
        assert_eq!(wait_for("the end", tail.child.wait()).await.unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it() {
    let server = Server::start(&["--topic", "chat: history=3"]);
    let mut tail = Tail::start(&["chat", "--from", "-1", "--api-listen", &server.api().to_string()]);
    publish(&server, "chat", "1").await;
    assert_eq!(tail.line().await, "1");
    drop(tail.lines);
    publish(&server, "chat", "2").await;
    assert_eq!(wait_for("the end", tail.child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn the_key_and_the_certificate_are_used() {
    let authority = Authority::new();
    let identity = authority.server("api");
    let (cert, key) = (text(&identity.cert), text(&identity.key));
    let flags = [
        "--api-tls-cert",
        cert,
        "--api-tls-key",
        key,
        "--api-key",
        "right-key",
        "--topic",
        "chat: history=3",
    ];
    let server = Server::start(&flags);
    let address = server.api().to_string();
    let client = ["chat", "--from", "-1", "--api-listen", &address, "--api-tls-cert", cert];
    let refused = run(&[&["tail"], &client[..]].concat(), &[("DEEPERHUB_API_KEY", "wrong-key")]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("refuses the key") && !refused.stderr.contains("wrong-key"),
        "{refused:?}"
    );
    let mut publisher = Client::connect(&server).await;
    let publish = json!({"type": "publish", "id": 1, "data": {"topic": "chat", "message": "hello"}});
    publisher.request(&publish).await;
    let mut tail = Tail::start(&[&client[..], &["--api-key", "right-key"]].concat());
    assert_eq!(tail.line().await, "\"hello\"");
}

#[test]
fn failures_exit_with_1_and_invalid_arguments_with_2() {
    let server = Server::start(&["--topic", "chat: history=3"]);
    let (address, nobody) = (server.api().to_string(), format!("127.0.0.1:{}", free_port()));
    let no_rule = "error: no rule keeps messages of this topic; add one whose pattern matches it";
    for (arguments, code, named) in [
        (&["other", "--api-listen", &address][..], 1, no_rule),
        (&["chat", "--api-listen", &nobody], 1, "cannot reach the server API"),
        (&["chat", "--api-listen", &server.clients.to_string()], 1, "error: "),
        (&["chat", "--api-listen", "off"], 1, "is off"),
        (&[], 2, "<TOPIC>"),
        (&["a..b"], 2, "a..b"),
        (&["chat.>"], 2, "chat.>"),
        (&["chat", "--from", "10"], 2, "expected a negative number such as -10, or a position EPOCH:OFFSET"),
        (&["chat", "--from", "-0"], 2, "expected a negative number"),
        (&["chat", "--from", "k3J9aQx2:x"], 2, "expected a negative number"),
        (&["chat", "--colour"], 2, "--colour"),
    ] {
        let finished = run(&[&["tail"], arguments].concat(), &[]);
        assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(named), "{named:?} is not in {}", finished.stderr);
        assert_eq!(finished.stdout, "");
    }
}
