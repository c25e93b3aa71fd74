//! Tasks of attackers, and counts of what they did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::JoinSet;

use super::{Attack, ConnectOptions, ends};

/// Counts what attackers did and how their connections ended.
#[derive(Debug, Default)]
pub(crate) struct AttackCounters {
    connected: AtomicU64,
    sent: AtomicU64,
    ended: AtomicU64,
    /// Description of how the last connection ended.
    last_end: std::sync::Mutex<String>,
}

impl AttackCounters {
    pub(super) fn connected(&self) {
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, count: u64) {
        self.sent.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn ended(&self, how: String) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut last) = self.last_end.lock() {
            *last = how;
        }
    }

    /// Returns the number of messages (or handshakes) sent.
    pub(crate) fn messages(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of connections opened.
    pub(crate) fn connections(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }
}

impl std::fmt::Display for AttackCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} connections, {} messages", self.connections(), self.messages())?;
        let ended = self.ended.load(Ordering::Relaxed);
        if ended > 0 {
            let last = self.last_end.lock().map(|last| last.clone()).unwrap_or_default();
            write!(f, ", {ended} ended or refused (the last: {})", ends(&last))?;
        }
        Ok(())
    }
}

/// Tasks of attackers; dropping it ends them.
#[derive(Debug, Default)]
pub(crate) struct Attackers {
    tasks: JoinSet<String>,
    pub(crate) counters: Arc<AttackCounters>,
}

impl Attackers {
    /// Starts attackers, which take `options` in turn.
    pub(crate) fn spawn(&mut self, attack: Attack, options: &[ConnectOptions], clients: usize) {
        for (client, options) in options.iter().cycle().take(clients).enumerate() {
            let (options, counters) = (options.clone(), Arc::clone(&self.counters));
            self.tasks.spawn(async move { attack.run(&options, client, &counters).await });
        }
    }

    /// Ends all attackers.
    ///
    /// # Errors
    ///
    /// A description of the wrong bytes, if an attacker received any.
    pub(crate) async fn stop(mut self) -> Result<Arc<AttackCounters>, String> {
        self.tasks.abort_all();
        while let Some(done) = self.tasks.join_next().await {
            match done {
                Ok(wrong) => return Err(wrong),
                // A timeout of the wire client panics.
                Err(error) if error.is_panic() => return Err(format!("an attacker failed: {error}")),
                Err(_) => {}
            }
        }
        Ok(self.counters)
    }
}
