//! Runs a worker on its thread. After a panic, closes its connections and starts a replacement.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use deeperhub_protocol::frame;
use tokio::runtime::{self, Runtime};

use super::apply::report_end;
use super::next::internal_error_reason;
use super::{Next, Worker, WorkerCore};
use crate::connection::{ClosingUntil, Connection, InputHolds, State};
use crate::control::{Control, Mailbox};
use crate::metrics::{HandshakeOutcome, WorkerMetrics};
use crate::restart::RestartDelay;
use crate::round::Buffers;
use crate::session::{Application, Closed, ConnectionKey};

/// Work that a replacement does for the sessions of the worker that panicked.
enum Recovery<S> {
    /// The replacement has no such work.
    Nothing,
    /// The replacement closes the connections one by one in the ordinary way.
    Connections,
    /// The replacement calls `on_close` of these sessions. Their connections are already gone: a
    /// second panic followed soon, so one of the connections may be the cause.
    Sessions(Vec<(ConnectionKey, S)>),
}

/// Creates the async runtime for a worker's sockets and timers.
///
/// # Errors
///
/// Returns an error if the process is out of file descriptors.
pub(crate) fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_io().enable_time().build()
}

/// Runs a worker until the listener stops, and replaces it after a panic. The first replacement
/// starts at once; repeated ones are delayed more and more ([`RestartDelay`]). The connections of a
/// worker that panicked are closed with 1011, and `on_close` of each session is called.
pub(crate) fn run<A: Application>(
    application: &A,
    index: usize,
    runtime: &Runtime,
    control: &Control,
    mut core: WorkerCore<A::Session>,
    mut cells: WorkerMetrics,
) {
    #[cfg(feature = "io-uring")]
    core.round.enable_batching(&core.shared.config, index);
    let mailbox = control.mailbox(index);
    runtime.block_on(tokio::task::unconstrained(async {
        mailbox.attach(&std::future::poll_fn(|cx| Poll::Ready(cx.waker().clone())).await);
        let mut restarts = RestartDelay::default();
        let mut recovery = Recovery::Nothing;
        loop {
            // The phase may have changed since the last worker's last round, and new connections
            // may be queued.
            mailbox.notify_self(Instant::now());
            mailbox.set_vacant(false);
            let started_at = Instant::now();
            let exit =
                run_worker(|| Worker::new(application, index, &mut core, control, &mut cells), &mut recovery);
            if exit.await == WorkerExit::Stopped {
                return;
            }
            mailbox.set_vacant(true);
            core.shared.metrics.worker_restarts.inc();
            tracing::error!(worker = index, "Worker panicked; closing its connections with 1011");
            let delay = restarts.after(started_at.elapsed());
            // The replacement counts the queued bytes anew.
            cells.queue_bytes.set(0);
            recovery = match recovery {
                Recovery::Nothing if delay.is_zero() => Recovery::Connections,
                Recovery::Nothing | Recovery::Connections => Recovery::Sessions(abort_connections(&mut core)),
                Recovery::Sessions(mut sessions) => {
                    sessions.append(&mut abort_connections(&mut core));
                    Recovery::Sessions(sessions)
                }
            };
            if is_stopped_within(delay, control, mailbox).await {
                return;
            }
        }
    }));
}

/// Reason for which a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerExit {
    /// The listener stopped.
    Stopped,
    /// The worker panicked.
    Panicked,
}

/// Creates a worker, lets it do the work of `recovery`, and polls it until it ends. Clears
/// `recovery` after its first round.
async fn run_worker<'a, A: Application>(
    make: impl FnOnce() -> Worker<'a, A>,
    recovery: &mut Recovery<A::Session>,
) -> WorkerExit {
    let Ok(mut worker) = catch_unwind(AssertUnwindSafe(make)) else { return WorkerExit::Panicked };
    let mut is_first = true;
    let end = std::future::poll_fn(|cx| {
        let round = catch_unwind(AssertUnwindSafe(|| {
            if !is_first {
                return worker.poll_round(cx);
            }
            worker.recover(recovery);
            let round = worker.poll_round(cx);
            *recovery = Recovery::Nothing;
            is_first = false;
            round
        }));
        match round {
            Ok(round) => round.map(|()| WorkerExit::Stopped),
            Err(_) => Poll::Ready(WorkerExit::Panicked),
        }
    })
    .await;
    // Dropping the application's worker state may panic as well.
    match catch_unwind(AssertUnwindSafe(|| drop(worker))) {
        Ok(()) => end,
        Err(_) => WorkerExit::Panicked,
    }
}

/// Waits for `delay`. Returns `true`, and early, if the listener stops.
async fn is_stopped_within(delay: Duration, control: &Control, mailbox: &Mailbox) -> bool {
    let mut delay = pin!(tokio::time::sleep(delay));
    std::future::poll_fn(|cx: &mut task::Context<'_>| {
        // Take the notification, so that the next one wakes this task again.
        mailbox.take_notification();
        if control.is_stopping() { Poll::Ready(true) } else { delay.as_mut().poll(cx).map(|()| false) }
    })
    .await
}

impl<A: Application> Worker<'_, A> {
    /// Does the work that the last worker's panic left.
    fn recover(&mut self, recovery: &mut Recovery<A::Session>) {
        match recovery {
            Recovery::Nothing => {}
            Recovery::Connections => self.close_after_panic(),
            Recovery::Sessions(sessions) => {
                let closed = Closed::ByServer(internal_error_reason());
                while let Some((key, session)) = sessions.pop() {
                    report_end(session, key, &closed, &mut self.ctx);
                }
            }
        }
    }

    /// Closes the open connections of the worker that panicked, after their queued frames. Clients
    /// get a close frame, and `on_close` of each session is called. Handshakes continue.
    fn close_after_panic(&mut self) {
        self.ctx.begin_round(Instant::now());
        // The panic interrupted a round: rebuild the lists and counts from all connections.
        self.ctx.round.reset_after_panic(&self.ctx.shared.config);
        let (table, lists) = (&mut *self.table, &mut self.ctx.round.lists);
        (table.open, table.paused) = (0, 0);
        let mut open = Vec::new();
        for (key, connection) in &mut table.slab {
            let key = key as ConnectionKey;
            let flags = &mut connection.flags;
            lists.run_queue.push(key);
            flags.dirty = false;
            lists.mark_dirty(key, flags);
            flags.in_backlog = false;
            flags.has_unread = table.unread.contains_key(&key);
            table.paused += usize::from(flags.holds.contains(InputHolds::PAUSED));
            if matches!(connection.state, State::Open(_)) {
                open.push(key);
            }
        }
        table.open = open.len();
        for key in open {
            self.apply(key, Next::close(internal_error_reason()));
        }
    }
}

/// Drops all connections without running the code that may have panicked, and returns their
/// sessions. Sends a close frame with 1011 if no partly written frame precedes it.
fn abort_connections<S>(core: &mut WorkerCore<S>) -> Vec<(ConnectionKey, S)> {
    let mut close = Vec::new();
    let reason = internal_error_reason();
    frame::write_close(&mut close, Some(reason.code().as_u16()), reason.text());
    let WorkerCore { shared, round, table } = core;
    round.reset_after_panic(&shared.config);
    let table = std::mem::take(table);
    let mut sessions = Vec::with_capacity(table.open);
    for (key, connection) in table.slab {
        let Connection { mut transport, state, outbox, flags, .. } = connection;
        // While the socket is not full, no queued frame is partly written.
        let can_send_close = match state {
            State::Open(session) => {
                sessions.push((key as ConnectionKey, session));
                !flags.write_blocked
            }
            State::Closing(ClosingUntil::CloseFrame) => !flags.write_blocked && !outbox.is_empty(),
            State::Closing(_) => false,
            State::Handshake(handshake) => {
                shared.metrics.record_handshake(HandshakeOutcome::Lost);
                let _ = catch_unwind(AssertUnwindSafe(|| drop(handshake)));
                false
            }
        };
        let tls_scratch = &mut round.buffers.tls_scratch;
        let _ = catch_unwind(AssertUnwindSafe(|| {
            if can_send_close {
                let _ = transport.write(&close, tls_scratch);
                let _ = transport.shutdown_write();
            }
            drop((transport, outbox));
        }));
    }
    round.buffers = Buffers { sent: round.buffers.sent, ..Buffers::default() };
    sessions
}
