//! Runs the example `opentelemetry` in a process of its own and reads the spans it prints.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

#[path = "../examples/opentelemetry.rs"]
mod opentelemetry;

/// Not a test but the process that the test starts: `main` of the example.
#[test]
#[ignore = "serves until it is interrupted"]
fn example_process() {
    opentelemetry::main().unwrap();
}

/// Kills the process if the test fails before its end.
struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn spans_of_a_client_reach_the_projects_exporter() {
    let process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "example_process", "--ignored", "--nocapture"])
        .env("HUB_ADDRESS", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn();
    let mut example = Example(process.unwrap());
    let mut lines = BufReader::new(example.0.stdout.take().unwrap()).lines();
    let url = lines
        .by_ref()
        .map(Result::unwrap)
        .find_map(|line| line.find("ws://").map(|at| line[at..].trim().to_owned()))
        .expect("a line with the address");

    let (mut client, _) = tokio_tungstenite::connect_async(format!("{url}/ws")).await.unwrap();
    for request in [
        r#"{"type":"subscribe","data":{"topic":"ticks"}}"#,
        r#"{"type":"publish","data":{"topic":"ticks","message":1},"meta":{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}"#,
    ] {
        client.send(Message::text(request)).await.unwrap();
    }
    loop {
        let message = client.next().await.unwrap().unwrap();
        if message.to_text().unwrap().contains(r#""type":"message""#) {
            break;
        }
    }
    client.close(None).await.unwrap();
    let interrupted = Command::new("kill").args(["-INT", &example.0.id().to_string()]).status();
    assert!(interrupted.unwrap().success());

    // To the end of the output, which the exporter writes at the stop at the latest.
    let output: Vec<_> = lines.map(Result::unwrap).collect();
    assert!(example.0.wait().unwrap().success(), "{output:#?}");
    let has = |text: &str| output.iter().any(|line| line.contains(text));
    for expected in [
        "my-hub",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "00f067aa0ba902b7",
        "publish",
        "fan_out",
        "deliver",
        "messaging.destination.name",
        "ticks",
    ] {
        assert!(has(expected), "no {expected} in {output:#?}");
    }
}
