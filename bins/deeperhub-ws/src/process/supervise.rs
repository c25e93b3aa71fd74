//! Supervision: restarts tasks that panic.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;
use std::time::Instant;

use deeperhub_listener::RestartDelay;
use deeperhub_metrics::Unit;
use deeperhub_node::CustomGauge;
use tracing::error;

static RESTARTS: AtomicI64 = AtomicI64::new(0);

/// Gauge of task restarts after a panic.
pub(crate) const GAUGE: CustomGauge = CustomGauge {
    name: "deeperhub_task_restarts",
    help: "Restarts of tasks after a panic",
    unit: Unit::None,
    read: || RESTARTS.load(Ordering::Relaxed),
};

/// Runs the future that `make` creates, and returns its output. After a panic, creates and runs a
/// new future, with the backoff of [`RestartDelay`]. `task` is the name in the log.
pub(crate) async fn restart_on_panic<F: Future>(
    task: &'static str,
    mut make: impl FnMut() -> F,
) -> F::Output {
    let mut delay = RestartDelay::default();
    loop {
        let began = Instant::now();
        if let Some(output) = until_panic(&mut make).await {
            return output;
        }
        RESTARTS.fetch_add(1, Ordering::Relaxed);
        error!(task, "Task panicked; restarting");
        tokio::time::sleep(delay.after(began.elapsed())).await;
    }
}

/// Creates a future and runs it to its end. Returns `None` if it panicked.
async fn until_panic<F: Future>(make: impl FnOnce() -> F) -> Option<F::Output> {
    let mut future = pin!(catch_unwind(AssertUnwindSafe(make)).ok()?);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_restarted() {
        let mut runs = 0;
        let output = restart_on_panic("test", || {
            runs += 1;
            let run = runs;
            async move {
                tokio::task::yield_now().await;
                assert!(run > 3, "a test makes this task panic");
                run
            }
        })
        .await;
        assert_eq!(output, 4);
        assert!((GAUGE.read)() >= 3);
    }
}
