//! Runs the example `opentelemetry` in a process of its own and reads the spans it prints.

use std::process::Command;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/opentelemetry.rs"]
mod opentelemetry;

use example::{Example, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn opentelemetry_process() {
    run_main(opentelemetry::main);
}

#[tokio::test]
async fn spans_of_a_client_reach_the_projects_exporter() {
    let example = Example::start("opentelemetry_process", &[("HUB_ADDRESS", "127.0.0.1:0")]);
    let url = example.wait_for("listening on ");

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
    let interrupted = Command::new("kill").args(["-INT", &example.id().to_string()]).status();
    assert!(interrupted.unwrap().success());

    // The exporter has written all spans when the example ends.
    let (status, output) = example.wait();
    assert!(status.success(), "{status}: {output:#?}");
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
