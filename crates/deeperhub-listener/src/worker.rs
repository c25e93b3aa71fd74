//! The loop of one worker thread over its connections.
//!
//! Each pass of the loop is a *round* ([`Worker::poll_round`]). A round takes new connections and
//! gives ready connections a *turn*, in which their input is read and handled. It then polls the
//! application's worker state, checks deadlines, and writes the bytes queued for connections.
//!
//! *Phases* decide about a connection. They are functions over one connection and a
//! [`PhaseContext`] that return a verdict ([`Next`]). The worker applies verdicts in one place
//! ([`Worker::apply`]). Phases do not call each other in circles, and none of them ends a session.

mod apply;
mod arrivals;
#[cfg(feature = "io-uring")]
mod batch_read;
mod callback;
mod closing;
mod context;
mod deadlines;
mod decode;
mod handshake;
mod input;
mod liveness;
mod next;
mod read;
mod shed;
mod supervise;
mod turn;
mod write;

use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use crate::connections::Connections;
use crate::control::Control;
use crate::drain::WorkerDrain;
use crate::metrics::WorkerMetrics;
use crate::session::{Application, WorkerState};
use crate::table::ConnectionTable;

pub(crate) use context::{PhaseContext, WorkerCore};
pub(crate) use next::{Next, slow_consumer_reason};
pub(crate) use supervise::{run, runtime};

use deadlines::DeadlineSweep;

/// Size of the read buffer that all connections of a worker share.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Upper bound of [`coalesce_delay`].
const MAX_COALESCE_DELAY: Duration = Duration::from_micros(500);

/// Maximum interval between rounds while input must wait: sessions paused reading, or the intake
/// limit is used up.
const BLOCKED_INPUT_INTERVAL: Duration = Duration::from_millis(5);

/// A worker's loop.
pub(crate) struct Worker<'a, A: Application> {
    table: &'a mut ConnectionTable<A::Session>,
    ctx: PhaseContext<'a, A>,
    control: &'a Control,
    index: usize,
    cells: &'a mut WorkerMetrics,
    /// Read buffer that all connections share.
    read_buffer: Vec<u8>,
    /// Read buffers of one batch, one for each of its connections. Empty until the first batch.
    #[cfg(feature = "io-uring")]
    batch_buffers: Vec<u8>,
    deadlines: DeadlineSweep,
    /// Number of the last memory measurement that this worker acted on.
    last_shed_measurement: u64,
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// Earliest start of the next round after a burst; see [`coalesce_delay`].
    coalesce_until: Option<Instant>,
}

/// Result of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RoundEnd {
    /// The listener is stopping.
    Stopped,
    /// There is more work, so the next round follows at once.
    MoreWork,
    /// The worker waits for the next event or deadline.
    Idle,
}

impl<'a, A: Application> Worker<'a, A> {
    /// Creates a worker. Must be called on the worker's thread, within its runtime.
    pub(crate) fn new(
        application: &'a A,
        index: usize,
        core: &'a mut WorkerCore<A::Session>,
        control: &'a Control,
        cells: &'a mut WorkerMetrics,
    ) -> Self {
        let WorkerCore { shared, round, table } = core;
        let worker_state = application.worker_state(index);
        Self {
            table,
            deadlines: DeadlineSweep::new(round.clock.now()),
            ctx: PhaseContext { application, worker_state, shared, round, drain: None },
            control,
            index,
            cells,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            #[cfg(feature = "io-uring")]
            batch_buffers: Vec::new(),
            last_shed_measurement: 0,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            coalesce_until: None,
        }
    }

    /// Runs one round. Returns `Ready` once the listener is stopping.
    pub(crate) fn poll_round(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if let Some(wait) = self.coalesce_until.take().and_then(|until| until.checked_duration_since(now)) {
            std::thread::sleep(wait);
            // Yield to the reactor, so that it collects the events that arrived meanwhile.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let end = self.run_round(now, cx);
        if end == RoundEnd::Stopped {
            return Poll::Ready(());
        }
        if end == RoundEnd::MoreWork || !self.arm_wakeups(cx) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Runs the round that begins `now`.
    fn run_round(&mut self, now: Instant, cx: &mut task::Context<'_>) -> RoundEnd {
        self.ctx.begin_round(now);
        let Some(mut has_more_work) = self.take_arrivals() else { return RoundEnd::Stopped };
        self.poll_ready();

        // Poll after the turns, so that frames published in them are delivered in this round.
        let PhaseContext { worker_state, shared, round, .. } = &mut self.ctx;
        let mut connections = Connections { shared, round, table: self.table };
        has_more_work |= worker_state.poll(cx, &mut connections).is_ready();
        self.apply_listed();
        self.close_due_for_drain();
        self.check_deadlines();
        self.shed();
        self.write_dirty();
        has_more_work |= self.report_drained();
        let written_at = Instant::now();
        self.ctx.worker_state.on_written(written_at);
        let duration = written_at.saturating_duration_since(now);
        self.update_metrics(duration);
        self.ctx.round.buffers.shrink_gather();

        let round = &*self.ctx.round;
        has_more_work |= self.deadlines.is_under_way() || !round.lists.dirty.is_empty();
        // Connections with input cannot be read while the intake limit is used up.
        let has_input = !round.lists.run_queue.is_empty() || !round.lists.backlog.is_empty();
        has_more_work |= has_input && !round.intake.is_used_up();
        if !has_more_work && round.deliveries.is_in_burst() {
            self.coalesce_until = Some(written_at + coalesce_delay(duration));
        }
        if has_more_work { RoundEnd::MoreWork } else { RoundEnd::Idle }
    }

    /// Adds the counts of a round to the metrics.
    fn update_metrics(&mut self, duration: Duration) {
        let (cells, round) = (&mut *self.cells, &mut *self.ctx.round);
        cells.round_seconds.observe_duration(duration);
        cells.received_bytes.add(std::mem::take(&mut round.received));
        cells.sent_bytes.add(std::mem::take(&mut round.buffers.sent));
        let deferred = std::mem::take(&mut round.deferred);
        if deferred > 0 {
            cells.turns_deferred.add(deferred);
        }
        cells.add_compression(&mut round.codec);
        let ended = std::mem::take(&mut round.buffers.tls_scratch.ended);
        self.ctx.shared.metrics.record_tls_handshakes(ended);
    }

    /// Arms the wake-ups for ready connections and for the next time-based work. Returns `false` if
    /// there is work to do now.
    fn arm_wakeups(&mut self, cx: &mut task::Context<'_>) -> bool {
        let mut next_work = self.deadlines.next();
        if self.table.paused > 0 || self.ctx.round.intake.is_used_up() {
            next_work = next_work.min(self.ctx.round.clock.now() + BLOCKED_INPUT_INTERVAL);
        }
        if let Some(drain) = &mut self.ctx.drain
            && let Some(next_close) = drain.next_close(self.table.open)
        {
            next_work = next_work.min(next_close);
        }
        self.sleep.as_mut().reset(next_work.into());
        self.sleep.as_mut().poll(cx).is_pending() && self.ctx.shared.ready.sleep(cx.waker())
    }

    /// Applies the listed verdicts: closes that the worker state asked for, and slow consumers.
    fn apply_listed(&mut self) {
        while let Some((key, next)) = self.ctx.round.lists.verdicts.pop() {
            self.apply(key, next);
        }
    }
}

/// Returns the delay between a round of a burst and the next round, given the round's duration.
///
/// Publishers that get their answers at the end of a round send their next messages close together.
/// Without the delay, the first message would get a round of its own, and the others would wait for
/// that round.
fn coalesce_delay(duration: Duration) -> Duration {
    (duration / 8).min(MAX_COALESCE_DELAY)
}

/// Returns 0.5 to 1 times `time`, different for neighbouring keys. Clients that lose their
/// connections together thus do not reconnect together.
fn spread(key: u32, time: Duration) -> Duration {
    time.mul_f64(0.5 + f64::from(key.wrapping_mul(2_654_435_769) >> 16) / 131_072.0)
}

#[cfg(test)]
mod tests;
