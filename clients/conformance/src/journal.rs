//! A record of what passed between kit, client and application, for the texts of failures.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const LAST_LINES: usize = 24;
const MAX_COLUMNS: usize = 300;

/// The last lines of a scene, shared by all its parts.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Mutex<Entries>>);

struct Entries {
    start: Instant,
    lines: VecDeque<String>,
    awaited: String,
    awaited_since: Instant,
}

impl Journal {
    pub(crate) fn new() -> Self {
        let start = Instant::now();
        let awaited = "the driver".to_owned();
        let entries = Entries { start, lines: VecDeque::new(), awaited, awaited_since: start };
        Self(Arc::new(Mutex::new(entries)))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line. `side` says who speaks to whom.
    pub(crate) fn note(&self, side: &str, text: &str) {
        let mut entries = self.entries();
        let elapsed = entries.start.elapsed().as_secs_f64();
        let short: String = text.chars().take(MAX_COLUMNS).collect();
        let dots = if short.len() < text.len() { "…" } else { "" };
        entries.lines.push_back(format!("{elapsed:7.3} {side} {short}{dots}"));
        if entries.lines.len() > LAST_LINES {
            entries.lines.pop_front();
        }
    }

    /// Remembers the step that the scene waits for, in case it never comes.
    pub(crate) fn await_step(&self, step: impl Into<String>) {
        let mut entries = self.entries();
        entries.awaited = step.into();
        entries.awaited_since = Instant::now();
    }

    /// Waits until the scene has waited for one step for this time.
    pub(crate) async fn wait_for_stall(&self, time: Duration) {
        self.entries().awaited_since = Instant::now();
        loop {
            let stalls_at = self.entries().awaited_since + time;
            if stalls_at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(stalls_at.into()).await;
        }
    }

    pub(crate) fn awaited(&self) -> String {
        self.entries().awaited.clone()
    }

    /// Returns the last lines, each indented.
    pub(crate) fn last_lines(&self) -> String {
        self.entries().lines.iter().map(|line| format!("\n    {line}")).collect()
    }
}
