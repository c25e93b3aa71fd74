//! The process between the kit and the client.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};
use crate::journal::Journal;

/// A running driver.
pub(crate) struct Driver {
    child: Child,
    stdin: Option<ChildStdin>,
    journal: Journal,
}

impl Driver {
    /// Starts the driver, which trusts a certificate. What it writes arrives in the receiver, line
    /// by line.
    pub(crate) fn start(
        command: &[String],
        trusted: Option<&Path>,
        journal: Journal,
    ) -> Result<(Self, mpsc::UnboundedReceiver<String>)> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| Failure::new("the command of the driver is empty"))?;
        // OpenSSL, rustls and Node.js look there for authorities.
        let variables = ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"].into_iter();
        let mut child = Command::new(program)
            .envs(variables.filter_map(|name| Some((name, trusted?))))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::new(format!("the driver {program:?} cannot be started: {error}")))?;
        let (lines, receiver) = mpsc::unbounded_channel();
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(async move {
                let mut stdout = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = stdout.next_line().await {
                    if lines.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        if let Some(stderr) = child.stderr.take() {
            let journal = journal.clone();
            tokio::spawn(async move {
                let mut stderr = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = stderr.next_line().await {
                    journal.note("stderr:", &line);
                }
            });
        }
        let stdin = child.stdin.take();
        Ok((Self { child, stdin, journal }, receiver))
    }

    /// Returns the ID of the process, while it runs.
    pub(crate) fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Gives the driver a command.
    pub(crate) async fn send(&mut self, command: &Value) -> Result {
        let line = command.to_string();
        self.journal.note("do:", &line);
        let stdin =
            self.stdin.as_mut().ok_or_else(|| Failure::new("the driver's input is closed already"))?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .map_err(|error| Failure::new(format!("the driver takes no more commands: {error}")))
    }

    /// Sends a signal to the process, such as `STOP`.
    pub(crate) async fn signal(&mut self, name: &str) -> Result {
        let id = self.process_id().ok_or_else(|| Failure::new("the driver has ended"))?;
        self.journal.note("kit:", &format!("SIG{name} to the driver"));
        let status = Command::new("kill").arg(format!("-{name}")).arg(id.to_string()).status().await?;
        if status.success() { Ok(()) } else { Err(Failure::new(format!("kill -{name} {id} failed"))) }
    }

    /// Closes the driver's input and waits for its end.
    pub(crate) async fn end(&mut self) -> Result {
        self.journal.await_step("the end of the driver after the end of its input");
        self.stdin = None;
        let status = self.child.wait().await?;
        self.journal.note("kit:", &format!("the driver ended with {status}"));
        Ok(())
    }

    /// Kills the driver if it does not end by itself.
    pub(crate) async fn stop(mut self) {
        self.stdin = None;
        if tokio::time::timeout(Duration::from_millis(500), self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
