//! Supervises a worker's thread: replaces a worker that panicked, and hands over its state.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use deeperhub_protocol::frame;
use deeperhub_protocol::{CloseCode, CloseReason};
use tokio::runtime::{self, Runtime};

use super::{Worker, WorkerCells};
use crate::arena::Arena;
use crate::connections::{Closing, Connection, State, WorkerCore};
use crate::control::{Control, Mailbox};
use crate::deflate::Coders;
use crate::metrics::HandshakeOutcome;
use crate::restart::RestartDelay;
use crate::session::{Application, Closed, ConnectionKey, Session};
use crate::transport::TlsScratch;

/// State that a dead worker leaves to its replacement.
enum Recovery<S> {
    /// Nothing is left to recover.
    Nothing,
    /// Its connections as they were, to be closed one by one in the ordinary way.
    Connections,
    /// Sessions only, to be told of their end; their connections are closed. The worker died again
    /// at once, so one of the connections may be the cause.
    Sessions(Vec<(ConnectionKey, S)>),
}

/// Creates the runtime for a worker's sockets and timers.
///
/// # Errors
///
/// Returns an error if the system gives no descriptors.
pub(crate) fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_io().enable_time().build()
}

/// Runs a worker until the listener stops, and replaces it after a panic. The first restart comes
/// at once; repeated ones are delayed more and more. Sessions of a dead worker end with 1011, and
/// each is told.
pub(crate) fn run<A: Application>(
    application: &A,
    index: usize,
    runtime: &Runtime,
    control: &Control,
    mut core: WorkerCore<A::Session>,
    mut cells: WorkerCells,
) {
    #[cfg(feature = "io-uring")]
    core.enable_batching(index);
    let mailbox = control.mailbox(index);
    // Deadlines of connections count from here, also for replacement workers.
    let started = Instant::now();
    runtime.block_on(tokio::task::unconstrained(async {
        mailbox.attach(&std::future::poll_fn(|cx| Poll::Ready(cx.waker().clone())).await);
        let mut restarts = RestartDelay::default();
        let mut recovery = Recovery::Nothing;
        loop {
            // The phase may have changed since the last worker looked, and connections may be
            // queued.
            mailbox.notify_self(Instant::now());
            mailbox.set_vacant(false);
            let began = Instant::now();
            let exit = run_worker(
                || Worker { started, ..Worker::new(application, index, &mut core, control, &mut cells) },
                &mut recovery,
            );
            if exit.await == WorkerExit::Stopped {
                return;
            }
            mailbox.set_vacant(true);
            core.metrics.worker_restarts.inc();
            tracing::error!(worker = index, "Worker panicked; closing its connections with 1011");
            let delay = restarts.after(began.elapsed());
            // The replacement counts queued bytes anew.
            cells.queue.set(0);
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

/// Reason for a worker's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerExit {
    /// The listener stopped.
    Stopped,
    /// The worker panicked.
    Panicked,
}

/// Creates a worker and polls it until it ends. Clears `recovery` after its first round.
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
        match control.is_stopping() {
            true => Poll::Ready(true),
            false => delay.as_mut().poll(cx).map(|()| false),
        }
    })
    .await
}

impl<A: Application> Worker<'_, A> {
    /// Handles the state that a dead worker left.
    fn recover(&mut self, recovery: &mut Recovery<A::Session>) {
        match recovery {
            Recovery::Nothing => {}
            Recovery::Connections => self.close_after_panic(),
            Recovery::Sessions(sessions) => {
                let closed = Closed::ByServer(internal_error_reason());
                while let Some((key, mut session)) = sessions.pop() {
                    let worker_state = &mut self.worker_state;
                    if catch_unwind(AssertUnwindSafe(|| session.on_close(key, &closed, worker_state)))
                        .is_err()
                    {
                        self.core.metrics.session_panics.inc();
                    }
                }
            }
        }
    }

    /// Closes the dead worker's connections in the ordinary way, after their queued frames. Clients
    /// read the close frame, and sessions are told. Handshakes go on.
    fn close_after_panic(&mut self) {
        let core = &mut *self.core;
        core.begin_round(Instant::now());
        // A round was interrupted: rebuild its lists from all connections.
        for list in [
            &mut core.run_queue,
            &mut core.arrived,
            &mut core.backlog,
            &mut core.dirty,
            &mut core.write_individually,
        ] {
            list.clear();
        }
        core.to_close.clear();
        core.coders = Coders::new(&core.config.compression);
        core.tls_scratch = TlsScratch::default();
        (core.open, core.paused) = (0, 0);
        let mut open = Vec::new();
        for (key, connection) in &mut core.connections {
            let key = key as ConnectionKey;
            core.run_queue.push(key);
            core.dirty.push(key);
            connection.flags.dirty = true;
            connection.flags.in_backlog = false;
            connection.flags.has_unread = core.unread.contains_key(&key);
            core.paused += usize::from(connection.flags.paused);
            if matches!(connection.state, State::Open(_)) {
                open.push(key);
            }
        }
        core.open = open.len();
        for key in open {
            self.close(key, internal_error_reason());
        }
    }
}

/// Closes a dead worker's connections without the code that may have panicked. Sends 1011 where a
/// frame can still be written whole. Returns the sessions.
fn abort_connections<S>(core: &mut WorkerCore<S>) -> Vec<(ConnectionKey, S)> {
    let mut close = Vec::new();
    let reason = internal_error_reason();
    frame::write_close(&mut close, Some(reason.code().as_u16()), reason.text());
    core.tls_scratch = TlsScratch::default();
    core.unread.clear();
    core.progress.clear();
    core.backlog.clear();
    core.arrived.clear();
    let mut sessions = Vec::with_capacity(core.open);
    for (key, connection) in std::mem::take(&mut core.connections) {
        let Connection { mut transport, state, outbox, flags, .. } = connection;
        // Frames queued for a socket that is not full are not partly written.
        let takes_a_frame = match state {
            State::Open(session) => {
                sessions.push((key as ConnectionKey, session));
                !flags.write_blocked
            }
            State::Closing(Closing::CloseFrame) => !flags.write_blocked && !outbox.is_empty(),
            State::Closing(_) => false,
            State::Handshake(handshake) => {
                core.metrics.handshake(HandshakeOutcome::Lost);
                let _ = catch_unwind(AssertUnwindSafe(|| drop(handshake)));
                false
            }
        };
        let tls_scratch = &mut core.tls_scratch;
        let _ = catch_unwind(AssertUnwindSafe(|| {
            if takes_a_frame {
                let _ = transport.write(&close, tls_scratch);
                let _ = transport.shutdown_write();
            }
            drop((transport, outbox));
        }));
    }
    for list in [
        &mut core.run_queue,
        &mut core.arrived,
        &mut core.backlog,
        &mut core.dirty,
        &mut core.write_individually,
    ] {
        list.clear();
    }
    core.to_close.clear();
    core.arena = Arena::default();
    core.gather = Vec::new();
    core.coders = Coders::new(&core.config.compression);
    core.tls_scratch = TlsScratch::default();
    (core.open, core.paused) = (0, 0);
    sessions
}

fn internal_error_reason() -> CloseReason {
    CloseReason::new(CloseCode::InternalError, "a fault inside the server")
}
