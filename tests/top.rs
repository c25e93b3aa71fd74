//! `top`, in a pseudo-terminal of 80 columns and 24 lines.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Server, WAIT_TIMEOUT, free_port, http, run};

/// Sequences that leave the alternate screen and show the cursor again.
const RESTORE_SEQUENCES: [&str; 2] = ["\x1b[?1049l", "\x1b[?25h"];

/// A program in a terminal; killed on drop.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    written: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Runs the program with these arguments. `script` provides the terminal and returns the
    /// program's exit code.
    fn start(arguments: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_deeperhub-ws");
        let command = format!("stty rows 24 cols 80 && exec '{program}' {arguments}");
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &command, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script (util-linux) runs");
        let keys = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&written);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        Self { child, keys, written, reader: Some(reader) }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Returns the visible screen.
    fn screen(&self) -> String {
        let mut parser = vt100::Parser::new(24, 80, 0);
        parser.process(&self.written.lock().unwrap());
        parser.screen().contents()
    }

    fn wait_for_text(&self, text: &str) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while !self.screen().contains(text) {
            assert!(
                Instant::now() < deadline,
                "timed out waiting for {text:?}; the screen:\n{}",
                self.screen()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the exit and returns the exit code and all output.
    fn end(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it did not exit; the screen:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(10));
        };
        self.reader.take().unwrap().join().unwrap();
        (status.code(), String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_server_is_watched_and_the_terminal_is_restored() {
    let server = Server::start(&["--node-id", "watched", "--api-key", "secret-key", "--rate-limit", "0"]);
    let mut client = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "hot.topic"}})).await;
    let arguments = format!("top --api-listen {} --api-key secret-key --interval 100ms", server.api());
    let mut terminal = Terminal::start(&arguments);
    terminal.wait_for_text("· watched ·");
    terminal.wait_for_text("connections 1 of 1000");
    terminal.wait_for_text("subscriptions 1   topics 1");
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !terminal.screen().contains("hot.topic") {
        assert!(Instant::now() < deadline, "{}", terminal.screen());
        client.send(&json!({"type": "publish", "data": {"topic": "hot.topic", "message": 1}})).await;
        client.receive().await;
    }
    terminal.wait_for_text(client.id());
    terminal.press("s");
    terminal.wait_for_text("busiest topics by messages");
    terminal.press("\x1b[C");
    terminal.press("s");
    terminal.wait_for_text("busiest clients by messages");
    terminal.press("p");
    terminal.wait_for_text("· paused");
    terminal.press("q");
    let (code, written) = terminal.end();
    assert_eq!(code, Some(0), "{written}");
    for sequence in RESTORE_SEQUENCES {
        assert!(written.contains(sequence), "{sequence:?} is not in {written:?}");
    }
    assert!(!written.contains("secret-key"));
}

#[test]
fn a_lost_server_is_shown_and_a_signal_restores_the_terminal() {
    let mut server = Server::start(&["--drain-timeout", "0"]);
    let mut terminal = Terminal::start(&format!("top --api-listen {} --interval 100ms", server.api()));
    terminal.wait_for_text("serving");
    server.signal("TERM");
    server.wait();
    terminal.wait_for_text("no answer");
    // Ctrl-C, which is not a signal in a terminal in raw mode.
    terminal.press("\x03");
    let (code, written) = terminal.end();
    assert_eq!(code, Some(0), "{written}");
    assert!(RESTORE_SEQUENCES.iter().all(|sequence| written.contains(sequence)), "{written:?}");
}

#[tokio::test]
async fn a_missing_server_key_or_terminal_is_reported() {
    let server = Server::start(&["--api-key", "secret-key"]);
    let address = server.api().to_string();
    assert_eq!(http(server.api(), "GET /v1/top", &[], "").await.status, 401);
    let nobody = format!("127.0.0.1:{}", free_port());
    for (listen, key, named) in [
        (address.as_str(), "wrong-key", "refuses the key"),
        (&nobody, "secret-key", "cannot reach the server API"),
        (&server.clients.to_string(), "secret-key", "is no server API"),
        ("off", "secret-key", "is off"),
        (&address, "secret-key", "not a terminal"),
    ] {
        let finished = run(&["top", "--api-listen", listen], &[("DEEPERHUB_API_KEY", key)]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains(named), "{named:?} is not in {}", finished.stderr);
        assert!(!finished.stderr.contains(key), "{}", finished.stderr);
    }
}
