//! Phase that calls a session for events other than its messages.

use std::panic::{AssertUnwindSafe, catch_unwind};

use deeperhub_protocol::CloseReason;

use super::next::internal_error_reason;
use super::{Next, PhaseContext};
use crate::connection::{Connection, InputHolds, State};
use crate::metrics::Metrics;
use crate::session::{Application, Context};

/// Runs `call` with the session of an open connection. Does nothing if the connection is not open.
pub(super) fn call<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    ctx: &mut PhaseContext<'_, A>,
    call: impl FnOnce(&mut A::Session, &mut Context<'_, A::WorkerState>),
) -> Next {
    let Connection { state: State::Open(session), outbox, flags, .. } = connection else {
        return Next::Continue;
    };
    let (mut close, mut holds, mut charged) = (None, InputHolds::default(), 0);
    let mut cx = Context {
        key,
        now: ctx.round.clock.now(),
        worker: &mut ctx.worker_state,
        outbox,
        arena: ctx.round.buffers.arena.replies(),
        compressor: &mut ctx.round.codec.compressor,
        deflate: flags.deflate,
        close: &mut close,
        holds: &mut holds,
        charged: &mut charged,
        direct_write: None,
    };
    let result = catch_unwind(AssertUnwindSafe(|| call(session, &mut cx)));
    match (result, close) {
        (Err(_), _) => Next::close(record_panic(&ctx.shared.metrics)),
        (Ok(()), Some(reason)) => Next::close(reason),
        (Ok(()), None) => Next::hold(holds),
    }
}

/// Counts the panic of a session, and returns the reason to close its connection with.
#[cold]
pub(super) fn record_panic(metrics: &Metrics) -> CloseReason {
    metrics.session_panics.inc();
    tracing::error!("Session panicked; closing its connection with 1011");
    internal_error_reason()
}
