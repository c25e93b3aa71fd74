//! The verdicts of phases.

use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};

use crate::connection::InputHolds;
use crate::table::UnreadInput;

/// Verdict of a phase: what happens next with its connection.
///
/// A phase is a function over one connection. It may change the connection's own state, such as its
/// queue and its flags. Everything else is left to [`Worker::apply`](super::Worker::apply): ending
/// the session, queueing close frames, listing and removing the connection.
///
/// Reasons are boxed, so that a verdict fits into two registers.
#[must_use = "the worker applies the verdict"]
#[derive(Debug)]
pub(crate) enum Next {
    /// The connection stays as it is and waits for its next event. Its queue is written at the end
    /// of the round.
    Continue,
    /// The connection is written at the end of the round, even if nothing new is queued.
    Write,
    /// The worker state waited for the connection's queue to drain, and it has. The worker state is
    /// told at the end of the round.
    Drained,
    /// The connection gets a turn in the next round.
    PollAgain,
    /// The turn is over with input left. The next turn comes from the backlog.
    Defer,
    /// The session paused reading or parked the connection.
    Hold(InputHolds),
    /// The handshake was accepted, and the connection has a session. The session's `on_open` is
    /// called, and then the bytes that followed the request are handled.
    Open(Option<Box<UnreadInput>>),
    /// The session ends, and the connection closes after its queued frames and a close frame.
    Close(Box<CloseReason>),
    /// The client sent a close frame with this code, if it had one. The session ends, and the
    /// close frame is answered.
    AnswerClose(Option<u16>),
    /// The client ended its input after its last message. The session ends, and the connection
    /// closes after its queued frames, without a close frame.
    HalfClosed,
    /// Memory is short and the connection is open. The session ends, a close frame is sent, and
    /// input takes no more memory.
    Shed,
    /// The handshake is answered with a refusal.
    Refuse(Box<Refusal>),
    /// The request was a readiness probe. It is answered with 200, or with a refusal.
    AnswerProbe(Option<Box<Refusal>>),
    /// The input is invalid TLS. The session ends, and only a TLS alert is still sent.
    FailTls,
    /// The socket failed, or the input ended with nothing left to send. The session ends and the
    /// connection is removed.
    Lost,
    /// The connection has no session any more, or never had one, and is removed.
    Remove,
}

impl Next {
    pub(crate) fn close(reason: CloseReason) -> Self {
        Self::Close(Box::new(reason))
    }

    pub(crate) fn refuse(refusal: Refusal) -> Self {
        Self::Refuse(Box::new(refusal))
    }

    /// Returns the verdict for holds that a session has asked for, or [`Next::Continue`] if it
    /// asked for none.
    #[inline]
    pub(super) fn hold(holds: InputHolds) -> Self {
        if holds.is_empty() { Self::Continue } else { Self::Hold(holds) }
    }

    /// Returns `true` if the connection's state changes, so that the rest of the same input is
    /// handled in the new state. Otherwise, the rest waits for the connection's next turn.
    pub(super) fn changes_state(&self) -> bool {
        !matches!(self, Self::Continue | Self::Drained | Self::PollAgain | Self::Defer | Self::Hold(_))
    }
}

/// Returns the close reason of a slow consumer (1013).
pub(crate) fn slow_consumer_reason() -> CloseReason {
    CloseReason::new(CloseCode::SlowConsumer, "too slow: the queue passed its limit")
}

/// Returns the close reason after a panic (1011).
pub(super) fn internal_error_reason() -> CloseReason {
    CloseReason::new(CloseCode::InternalError, "a fault inside the server")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_fits_into_two_registers() {
        assert!(size_of::<Next>() <= 2 * size_of::<usize>(), "a verdict has {} bytes", size_of::<Next>());
    }
}
