//! A progress bar while a run goes on, where someone looks.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::plan::Plan;
use crate::scenario::{Scenario, StopCondition};
use crate::shared_state::SharedState;

/// What is shown. On anything but a terminal it is nothing.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    stop: StopCondition,
    connections: u64,
    /// Whether what is sent and delivered is of interest.
    messages: bool,
    /// Deliveries when the bar was last drawn, and when that was.
    last: (u64, u64),
}

impl Progress {
    pub(crate) fn new(plan: &Plan) -> Self {
        let connections = (plan.clients + plan.publishers) as u64;
        // It hides itself where standard error is no terminal.
        let bar = ProgressBar::with_draw_target(Some(connections), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{prefix:10} [{bar:30}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix("connecting");
        let messages = plan.scenario.has_messages();
        if plan.scenario == Scenario::Churn {
            bar.set_prefix("running");
        }
        Self { bar, stop: plan.stop, connections, messages, last: (0, 0) }
    }

    /// Shows how far the run is.
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
        };
        self.bar.set_prefix("running");
        self.bar.set_length(length);
        self.bar.set_position(position.min(length));
        if self.messages {
            let delivered = shared.delivered.load(Relaxed);
            let (before, then) = std::mem::replace(&mut self.last, (delivered, now));
            let rate = delivered.saturating_sub(before) as f64 * 1e9 / now.saturating_sub(then).max(1) as f64;
            self.bar.set_message(format!("{rate:.0} deliveries a second"));
        } else {
            self.bar.set_message(format!("{} connections opened", shared.opened.load(Relaxed)));
        }
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
