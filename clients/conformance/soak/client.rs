//! The client under test, behind its driver.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::Result;

/// Events that wait. A client that writes faster than the soak reads is held back.
const MAX_EVENTS: usize = 10_000;

/// A running driver.
pub(crate) struct Client {
    child: Child,
    stdin: ChildStdin,
    events: mpsc::Receiver<Value>,
}

impl Client {
    pub(crate) fn start(command: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().ok_or("the command of the driver is empty")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("the driver {program:?} cannot be started: {error}"))?;
        let stdin = child.stdin.take().ok_or("the driver has no standard input")?;
        let stdout = child.stdout.take().ok_or("the driver has no standard output")?;
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).await.is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, events })
    }

    pub(crate) fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Gives the driver a command.
    pub(crate) async fn send(&mut self, command: &Value) -> Result {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await?;
        Ok(())
    }

    /// Passes on the events of some time.
    pub(crate) async fn observe(&mut self, duration: Duration, mut observer: impl FnMut(&Value)) -> Result {
        let end = Instant::now() + duration;
        loop {
            match timeout_at(end, self.events.recv()).await {
                Ok(Some(event)) => observer(&event),
                Ok(None) => return Err("the driver has ended".into()),
                Err(_) => return Ok(()),
            }
        }
    }

    pub(crate) async fn stop(mut self) {
        drop(self.stdin);
        if tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
