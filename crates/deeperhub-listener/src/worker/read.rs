//! Phase that reads a connection's socket.

use std::io;
use std::task::{self, Poll};

use super::{Next, PhaseContext, closing, liveness};
use crate::connection::{Connection, State};
use crate::round::{Round, TLS_STEP_COST, Turn};
use crate::session::Application;
use crate::table::ProgressTable;

/// Maximum reads of one connection in a turn, so that a busy client does not delay the others.
/// Handling its unread input counts as a read. A batched read at the start of a turn does not
/// count.
const READS_PER_TURN: usize = 4;

/// Maximum TLS handshake steps in one round. A step with an RSA certificate takes most of a
/// millisecond, so a flood of handshakes delays messages by a few milliseconds only.
const TLS_STEPS_PER_ROUND: usize = 8;

/// Maximum length of a single read after which the connection's next read may be batched. Buffers
/// for batched reads are slightly longer. After a read that fills its buffer, the connection's next
/// read is not batched either.
pub(super) const LONG_READ_BYTES: usize = 4096;

/// Next step of a connection's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnStep {
    /// The application's decision on the handshake is polled.
    PollDecision,
    /// The connection is not read now.
    End,
    /// The turn is over. The connection may have input left.
    Defer,
    /// Bytes of an earlier read are handled.
    HandleUnread,
    /// The socket is read.
    Read,
}

/// Returns the next step of a turn that has taken `steps` steps.
#[inline]
pub(super) fn next_step<S>(connection: &Connection<S>, steps: usize, turn: Turn, round: &Round) -> TurnStep {
    let flags = &connection.flags;
    match &connection.state {
        State::Handshake(handshake) if handshake.decision.is_some() => return TurnStep::PollDecision,
        State::Open(_) if !flags.holds.is_empty() || flags.over_queue_limit => return TurnStep::End,
        _ => {}
    }
    if flags.in_backlog {
        // A connection in the backlog is read when its turn there comes.
        TurnStep::End
    } else if turn.is_over() || steps == READS_PER_TURN {
        TurnStep::Defer
    } else if flags.has_unread {
        TurnStep::HandleUnread
    } else if connection.transport.is_handshaking() && !has_tls_steps_left(round) {
        TurnStep::Defer
    } else {
        TurnStep::Read
    }
}

fn has_tls_steps_left(round: &Round) -> bool {
    // A quarter of the steps is reserved for the backlog.
    let max_steps =
        if round.budget.has_reserve() { TLS_STEPS_PER_ROUND * 3 / 4 } else { TLS_STEPS_PER_ROUND };
    round.buffers.tls_scratch.handshake_steps < max_steps
}

/// Result of reading a socket.
#[derive(Debug)]
pub(super) enum Received {
    /// Input was read into the start of the buffer.
    Input {
        len: usize,
        /// `true` if the socket has no more input.
        is_drained: bool,
    },
    /// Nothing was read, but there may be input.
    Again,
    /// Nothing was read, and the turn ends.
    Nothing(Next),
}

/// Reads a connection's socket into `buffer`. If it has no input, arms the wake-up for input.
pub(super) fn read<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    progress: &mut ProgressTable,
    buffer: &mut [u8],
    turn: &mut Turn,
    ctx: &mut PhaseContext<'_, A>,
) -> Received {
    let tls_scratch = &mut ctx.round.buffers.tls_scratch;
    let steps = tls_scratch.handshake_steps;
    tls_scratch.received_any = false;
    let result = connection.transport.read(buffer, tls_scratch);
    if tls_scratch.handshake_steps > steps {
        ctx.round.budget.spend(turn, TLS_STEP_COST);
    }
    match result {
        Ok(0) => Received::Nothing(closing::end_of_input(connection)),
        Ok(len) => {
            ctx.round.received += len as u64;
            connection.flags.reads_long = len > LONG_READ_BYTES;
            let is_drained = len < buffer.len() && connection.transport.clear_readiness();
            Received::Input { len, is_drained }
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            // Part of a TLS record is a sign of life, too.
            if std::mem::take(&mut ctx.round.buffers.tls_scratch.received_any) {
                liveness::record_sign_of_life(connection, key, progress, ctx);
            }
            wait_for_input(connection, ctx)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Received::Again,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Received::Nothing(Next::FailTls),
        Err(_) => Received::Nothing(Next::Lost),
    }
}

/// Handles the result of a connection's batched read into a buffer of `buffer_len` bytes.
#[cfg(feature = "io-uring")]
pub(super) fn after_batched_read<A: Application>(
    connection: &mut Connection<A::Session>,
    buffer_len: usize,
    result: io::Result<usize>,
    ctx: &mut PhaseContext<'_, A>,
) -> Received {
    match result {
        Ok(0) => Received::Nothing(closing::end_of_input(connection)),
        Ok(len) => {
            ctx.round.received += len as u64;
            let is_drained = len < buffer_len && connection.transport.clear_readiness();
            connection.flags.reads_long = !is_drained;
            Received::Input { len, is_drained }
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && connection.transport.clear_readiness() => {
            wait_for_input(connection, ctx)
        }
        // The next read reports the error again.
        Err(_) => Received::Again,
    }
}

/// Arms the wake-up for input of a socket that had none.
fn wait_for_input<A: Application>(
    connection: &mut Connection<A::Session>,
    ctx: &PhaseContext<'_, A>,
) -> Received {
    match arm(connection) {
        None => Received::Again,
        Some(Next::Continue) => {
            liveness::mark_silent(connection, &ctx.round.clock);
            Received::Nothing(Next::Continue)
        }
        Some(next) => Received::Nothing(next),
    }
}

/// Requests a wake-up for new input. Returns `None` if the socket is readable now; otherwise the
/// turn ends with the verdict.
#[inline]
pub(super) fn arm<S>(connection: &mut Connection<S>) -> Option<Next> {
    let mut cx = task::Context::from_waker(&connection.waker);
    match connection.transport.arm_read(&mut cx) {
        Poll::Pending => Some(Next::Continue),
        Poll::Ready(Ok(())) => None,
        Poll::Ready(Err(_)) => Some(Next::Lost),
    }
}
