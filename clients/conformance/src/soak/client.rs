//! The client under test, behind its driver.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::Result;
use crate::driver::Driver;
use crate::journal::Journal;

/// A driver, and the lines that it has written.
pub(super) struct Client {
    driver: Driver,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Client {
    pub(super) fn start(command: &[String]) -> Result<Self> {
        let (driver, lines) = Driver::start(command, None, Journal::new())?;
        Ok(Self { driver, lines })
    }

    pub(super) fn process_id(&self) -> Option<u32> {
        self.driver.process_id()
    }

    /// Gives the driver a command.
    pub(super) async fn send(&mut self, command: &Value) -> Result {
        Ok(self.driver.send(command).await?)
    }

    /// Passes on the events of some time.
    pub(super) async fn observe(&mut self, duration: Duration, mut observer: impl FnMut(&Value)) -> Result {
        let end = Instant::now() + duration;
        loop {
            match timeout_at(end, self.lines.recv()).await {
                Ok(Some(line)) => observer(&serde_json::from_str(&line).unwrap_or(Value::String(line))),
                Ok(None) => return Err("the driver has ended".into()),
                Err(_) => return Ok(()),
            }
        }
    }

    pub(super) async fn stop(self) {
        self.driver.stop().await;
    }
}
