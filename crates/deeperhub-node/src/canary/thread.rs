//! The canary thread, which sends probes.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::warn;

use super::{Canary, ProbePublisher};

/// Time that a stop waits for the thread. Protects the stop against a call of the thread that
/// hangs.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Handle of the canary thread. Dropping the handle ends the thread.
#[derive(Debug)]
pub(crate) struct CanaryThread {
    canary: Arc<Canary>,
    thread: Option<JoinHandle<()>>,
    /// Receiving end of a channel that closes when the thread ends.
    ended: mpsc::Receiver<Infallible>,
}

impl CanaryThread {
    /// Starts the thread, unless probes are disabled.
    pub(crate) fn start<P>(canary: Arc<Canary>, publisher: Arc<P>) -> io::Result<Option<Self>>
    where
        P: ProbePublisher + Send + Sync + 'static,
    {
        if canary.config.interval.is_zero() {
            return Ok(None);
        }
        let thread_canary = Arc::clone(&canary);
        let (open_until_end, ended) = mpsc::channel();
        let run = move || {
            let _open_until_end = open_until_end;
            thread_canary.run(&*publisher);
        };
        let thread = thread::Builder::new().name("hub-canary".to_owned()).spawn(run)?;
        Ok(Some(Self { canary, thread: Some(thread), ended }))
    }
}

impl Drop for CanaryThread {
    fn drop(&mut self) {
        self.canary.state().is_stopped = true;
        self.canary.changed.notify_all();
        if self.ended.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            return warn!("Canary thread did not stop in time");
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was logged when it occurred.
            let _ = thread.join();
        }
    }
}
