//! Phases of a closing connection, and of the end of a client's input.

use deeperhub_protocol::frame::{Extended, FrameLimits, Incoming};

use super::Next;
use crate::connection::{ClosingUntil, Connection, State};
use crate::deflate;

/// Continues the close of a closing connection if all its bytes are written.
#[inline]
pub(super) fn advance<S>(connection: &mut Connection<S>) -> Next {
    let State::Closing(until) = connection.state else { return Next::Continue };
    if !connection.is_written() {
        return Next::Continue;
    }
    match until {
        ClosingUntil::CloseFrame => Next::Continue,
        ClosingUntil::Flushed => {
            connection.transport.close_notify();
            Next::Remove
        }
        ClosingUntil::Eof => {
            if !std::mem::replace(&mut connection.flags.write_shutdown, true)
                && connection.transport.shutdown_write().is_err()
            {
                Next::Remove
            } else {
                Next::Continue
            }
        }
    }
}

/// Discards input up to the client's close frame. Called after the server's close frame was queued.
pub(super) fn skip_to_close<S>(
    connection: &mut Connection<S>,
    bytes: &mut [u8],
    limits: &FrameLimits,
) -> Next {
    let deflate = connection.flags.deflate;
    let mut pos = 0;
    loop {
        let input = &mut *bytes;
        let until = match deflate::decode_without_inflating(
            deflate,
            &mut connection.decoder,
            limits,
            input,
            &mut pos,
        ) {
            Ok(Some(Extended::Plain(Incoming::Close(_)))) => ClosingUntil::Flushed,
            Ok(Some(_)) => continue,
            Ok(None) => return Next::Continue,
            Err(_) => ClosingUntil::Eof,
        };
        connection.state = State::Closing(until);
        return Next::Write;
    }
}

/// Handles the end of a client's input.
pub(super) fn end_of_input<S>(connection: &mut Connection<S>) -> Next {
    match &connection.state {
        // The client shut down only its sending side, and can still read the queued bytes.
        State::Closing(_) if !connection.is_written() => {
            connection.state = State::Closing(ClosingUntil::Flushed);
            Next::Write
        }
        // The client shut down its sending side after its last message. The replies are still
        // sent, then the connection is removed.
        State::Open(_) => Next::HalfClosed,
        _ => Next::Lost,
    }
}
