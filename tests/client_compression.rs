//! The clients for TypeScript and Python on connections with compression. The client for Rust offers
//! none.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::{Peer, ROOT, Server, install, metric, python_bin};

/// The time that a driver has for a step.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// A driver of the conformance kit: an application with a client.
struct Driver {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Driver {
    fn start(program: &Path, script: &str) -> Self {
        let mut child = Command::new(program)
            .arg(Path::new(ROOT).join("clients/conformance/drivers").join(script))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the driver starts");
        let input = child.stdin.take().expect("the input is piped");
        let output = BufReader::new(child.stdout.take().expect("the output is piped")).lines();
        Self { _child: child, input, output }
    }

    async fn command(&mut self, command: &Value) {
        let line = format!("{command}\n");
        self.input.write_all(line.as_bytes()).await.expect("the driver reads");
    }

    /// Returns the next event of this name and of a handle or call.
    async fn expect(&mut self, name: &str, handle: &str) -> Value {
        let wanted = async {
            while let Some(line) = self.output.next_line().await.expect("the driver writes text") {
                let event: Value = serde_json::from_str(&line).expect("the driver writes JSON");
                if event["event"] == name && event["as"] == handle {
                    return event;
                }
            }
            panic!("the driver ended before {name} of {handle}");
        };
        tokio::time::timeout(STEP_LIMIT, wanted).await.expect("the driver answers")
    }
}

/// Publishes a long message with a client, which receives it too. Both directions are compressed.
async fn publish_and_receive(program: &Path, script: &str) {
    let server = Server::start(&["--topic", "chat: history=10"]);
    let mut driver = Driver::start(program, script);
    driver.command(&json!({"do": "connect", "url": format!("ws://{}/", server.clients)})).await;
    driver.command(&json!({"do": "subscribe", "as": "chat", "topic": "chat"})).await;
    driver.expect("ready", "chat").await;
    let message = json!({"text": "again and again; ".repeat(200)});
    for call in 1..=3 {
        let publish = json!({"do": "publish", "as": "post", "topic": "chat", "message": message});
        driver.command(&publish).await;
        let event = driver.expect("message", "chat").await;
        assert_eq!((&event["message"], &event["offset"]), (&message, &json!(call)));
    }
    let compressed = metric(&server, "deeperhub_compressions_total").await;
    assert!(compressed >= 3, "{script}: {compressed} messages were compressed");
    let (input, output) =
        ("deeperhub_decompression_input_bytes_total", "deeperhub_decompression_output_bytes_total");
    let (input, output) = (metric(&server, input).await, metric(&server, output).await);
    assert!(input > 0 && input * 5 < output, "{script}: {input} bytes became {output}");
}

#[tokio::test]
async fn the_typescript_client_compresses_messages() {
    install(&[Peer::Node]);
    publish_and_receive(&PathBuf::from("node"), "typescript.mjs").await;
}

#[tokio::test]
async fn the_python_client_compresses_messages() {
    publish_and_receive(&python_bin().join("python"), "python.py").await;
}
