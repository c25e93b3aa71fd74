//! The progress bar on a terminal.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::plan::Plan;
use crate::scenario::{Scenario, StopCondition};
use crate::shared_state::SharedState;

/// A progress bar. It draws nothing if it is hidden or standard error is not a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    stop: StopCondition,
    connections: u64,
    /// Clients that are cut and return.
    returning: u64,
    has_messages: bool,
    /// Deliveries and time at the last update.
    last: Rate,
}

impl Progress {
    /// Creates a progress bar on standard error.
    pub(crate) fn on_stderr(plan: &Plan) -> Self {
        Self::new(plan, ProgressDrawTarget::stderr())
    }

    /// Creates a progress bar that draws nothing.
    pub(crate) fn hidden(plan: &Plan) -> Self {
        Self::new(plan, ProgressDrawTarget::hidden())
    }

    fn new(plan: &Plan, target: ProgressDrawTarget) -> Self {
        let connections = (plan.clients + plan.publishers) as u64;
        let bar = ProgressBar::with_draw_target(Some(connections), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix:10} [{bar:30}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix("connecting");
        let returning = plan.recover.as_ref().map_or(0, |recover| recover.clients as u64);
        let has_messages = plan.scenario.has_messages();
        if plan.scenario == Scenario::Churn {
            bar.set_prefix("running");
        }
        Self { bar, stop: plan.stop, connections, returning, has_messages, last: Rate::default() }
    }

    /// Draws the current state of the run.
    pub(crate) fn update(&mut self, shared: &SharedState) {
        if self.bar.is_hidden() {
            return;
        }
        let Some(start) = shared.start() else {
            let (opened, failed) = (shared.opened.load(Relaxed), shared.failed.load(Relaxed));
            self.bar.set_position(opened + failed);
            let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
            self.bar.set_message(format!("{opened} of {} connections{failed}", self.connections));
            return;
        };
        let now = shared.now();
        let (position, length) = match self.stop {
            StopCondition::Messages(messages) => (shared.sent.load(Relaxed), messages),
            StopCondition::Time { warmup, measured } => (
                milliseconds(Duration::from_nanos(now.saturating_sub(start))),
                milliseconds(warmup + measured),
            ),
            StopCondition::AllReturned { .. } => (shared.live.load(Relaxed), self.returning),
        };
        self.bar.set_prefix("running");
        self.bar.set_length(length);
        self.bar.set_position(position.min(length));
        if self.has_messages {
            let delivered = shared.delivered.load(Relaxed);
            let rate = self.last.update(delivered, now);
            self.bar.set_message(format!("{rate:.0} deliveries/s"));
        } else {
            self.bar.set_message(format!("{} connections opened", shared.opened.load(Relaxed)));
        }
    }
}

/// A count and the time at which it was read, in nanoseconds.
#[derive(Debug, Default)]
struct Rate {
    count: u64,
    time: u64,
}

impl Rate {
    /// Returns the rate per second since the last update.
    fn update(&mut self, count: u64, time: u64) -> f64 {
        let last = std::mem::replace(self, Self { count, time });
        count.saturating_sub(last.count) as f64 * 1e9 / time.saturating_sub(last.time).max(1) as f64
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
