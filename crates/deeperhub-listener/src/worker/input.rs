//! Phase that handles input according to the connection's state.

use super::{Next, PhaseContext, closing, decode, handshake};
use crate::connection::{ClosingUntil, Connection, State};
use crate::round::{HANDSHAKE_COST, Turn};
use crate::session::Application;

/// Handles input from position `at` on, and advances `at`. Stops at the end of the input, when the
/// connection's state changes, when the turn is over, or when the session pauses
/// reading or parks the connection.
#[inline]
pub(super) fn handle<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    bytes: &mut [u8],
    at: &mut usize,
    turn: &mut Turn,
    ctx: &mut PhaseContext<'_, A>,
) -> Next {
    if let State::Open(_) = &connection.state {
        return decode::decode(connection, key, bytes, at, turn, ctx);
    }
    // In the other states, all input is handled at once, or discarded.
    let rest = bytes.get_mut(*at..).unwrap_or_default();
    *at += rest.len();
    match connection.state {
        State::Handshake(_) => {
            ctx.round.budget.spend(turn, HANDSHAKE_COST);
            handshake::feed(connection, key, rest, turn, ctx)
        }
        State::Closing(ClosingUntil::CloseFrame) => {
            ctx.round.budget.spend(turn, rest.len());
            closing::skip_to_close(connection, rest, &ctx.shared.frame_limits)
        }
        State::Closing(_) | State::Open(_) => {
            ctx.round.budget.spend(turn, rest.len());
            Next::Continue
        }
    }
}
