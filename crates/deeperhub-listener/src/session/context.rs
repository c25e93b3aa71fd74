//! Operations of a session on its connection.

use std::io::IoSlice;
use std::time::Instant;

use deeperhub_protocol::CloseReason;
use deeperhub_protocol::deflate::Params;
use deeperhub_protocol::frame::{self, Frame};

use super::{ConnectionKey, Message};
use crate::connection::InputHolds;
use crate::deflate::Compressor;
use crate::outbox::Outbox;
use crate::transport::{TlsScratch, Transport};

/// Operations of a session on its connection and on its worker's state `W`.
#[derive(Debug)]
pub struct Context<'a, W> {
    pub(crate) key: ConnectionKey,
    pub(crate) now: Instant,
    pub(crate) worker: &'a mut W,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) arena: &'a mut Vec<u8>,
    pub(crate) compressor: &'a mut Compressor,
    /// Parameters of the negotiated compression.
    pub(crate) deflate: Option<Params>,
    /// Reason to close the connection with, once the session has asked for it.
    pub(crate) close: &'a mut Option<CloseReason>,
    /// Holds that the session has asked for.
    pub(crate) holds: &'a mut InputHolds,
    /// Cost that the session has charged.
    pub(crate) charged: &'a mut usize,
    /// Socket for long replies, if they may be written at once.
    pub(crate) direct_write: Option<DirectWrite<'a>>,
}

/// Socket to which long replies are written at once, without a queue.
#[derive(Debug)]
pub(crate) struct DirectWrite<'a> {
    pub(crate) transport: &'a mut Transport,
    pub(crate) tls_scratch: &'a mut TlsScratch,
    pub(crate) sent: &'a mut u64,
}

/// Minimum bytes of a payload that is written in place. Copying such a payload costs more than a
/// vectored write (measured, see benches/README.md).
const MIN_DIRECT_WRITE: usize = 8 * 1024;

impl<W> Context<'_, W> {
    /// Returns the key of this connection.
    pub fn key(&self) -> ConnectionKey {
        self.key
    }

    /// Returns the time at which the worker's round began.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Returns the state that the worker's sessions share.
    pub fn worker(&mut self) -> &mut W {
        self.worker
    }

    /// Sends the frames that `write` appends to a buffer. They must be complete (see
    /// [`frame`](crate::frame)). Sending allocates nothing if the socket takes them in this round.
    /// Messages over the compression threshold are compressed if the client negotiated it.
    pub fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.arena.len();
        write(self.arena);
        self.queue_replies(start);
    }

    /// Sends frames like [`reply`](Self::reply), but never compresses them. For messages that are
    /// sent once per connection, compression costs more than it saves.
    pub fn reply_uncompressed(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.arena.len();
        write(self.arena);
        self.outbox.push_arena(self.arena, start..self.arena.len());
    }

    /// Sends a text or binary message.
    pub fn reply_message(&mut self, message: Message<'_>) {
        self.reply(|out| match message {
            Message::Text(text) => frame::write_text(out, text),
            Message::Binary(bytes) => frame::write_binary(out, bytes),
        });
    }

    /// Returns `true` if [`reply_around`](Self::reply_around) would write a payload of `len` bytes
    /// to the socket at once, without a copy. That requires a long payload and a connection without
    /// compression and TLS. It also requires that no frames are queued, and that no further input
    /// of the client is buffered.
    pub fn writes_in_place(&self, len: usize) -> bool {
        len >= MIN_DIRECT_WRITE
            && self.direct_write.is_some()
            && self.outbox.is_empty()
            && self.deflate.is_none()
    }

    /// Sends complete frames that contain `payload`, if possible without copying it. `write`
    /// appends the bytes before and after the payload to a buffer, and returns the position in the
    /// buffer at which the payload is inserted. If `write` returns `None`, the payload is not
    /// inserted.
    ///
    /// The payload is copied if [`writes_in_place`](Self::writes_in_place) returns `false`, or if
    /// the socket does not take all of it.
    pub fn reply_around(&mut self, payload: &[u8], write: impl FnOnce(&mut Vec<u8>) -> Option<usize>) {
        let in_place = self.writes_in_place(payload.len());
        let start = self.arena.len();
        let position = write(self.arena).filter(|position| (start..=self.arena.len()).contains(position));
        let mut written = 0;
        if let Some(position) = position {
            if in_place {
                written = self.write_in_place(start, position, payload);
                if written == self.arena.len() - start + payload.len() {
                    return self.arena.truncate(start);
                }
            }
            self.arena.splice(position..position, payload.iter().copied());
        }
        self.queue_replies(start);
        if written > 0 {
            self.outbox.advance(written);
        }
    }

    /// Queues the replies in the arena from `start` on. Compresses them if the client negotiated
    /// it.
    fn queue_replies(&mut self, start: usize) {
        if let Some(params) = self.deflate {
            self.compressor.replies(params, self.arena, start);
        }
        self.outbox.push_arena(self.arena, start..self.arena.len());
    }

    /// Writes the replies in the arena from `start` on, with the payload inserted at `position`, to
    /// the socket. Returns how many bytes the socket took.
    fn write_in_place(&mut self, start: usize, position: usize, payload: &[u8]) -> usize {
        let Some(DirectWrite { transport, tls_scratch, sent }) = &mut self.direct_write else { return 0 };
        let slices = [&self.arena[start..position], payload, &self.arena[position..]].map(IoSlice::new);
        // After an error, the bytes are queued, and their write reports the error again.
        let written = transport.write_vectored(&slices, tls_scratch).unwrap_or(0);
        **sent += written as u64;
        written
    }

    /// Sends a shared frame.
    pub fn send(&mut self, frame: &Frame) {
        self.outbox.push(match self.deflate {
            None => frame,
            Some(params) => self.compressor.shared(params, frame),
        });
    }

    /// Closes the connection after the frames sent so far. A second call has no effect.
    pub fn close(&mut self, reason: CloseReason) {
        self.close.get_or_insert(reason);
    }

    /// Charges work to the connection's turn, if it costs much more than the message that caused
    /// it. One unit of `cost` stands for about a nanosecond. Once the turn is over, the rest of the
    /// client's input waits for the next turn. Works in
    /// [`Session::on_message`](super::Session::on_message) and
    /// [`Session::admit_control_frame`](super::Session::admit_control_frame) only; other methods
    /// have no turn.
    pub fn charge(&mut self, cost: usize) {
        *self.charged = self.charged.saturating_add(cost);
    }

    /// Stops reading from this connection until
    /// [`Connections::resume_reading`](crate::Connections::resume_reading) is called. Further input
    /// waits in the kernel, so TCP slows the client down. Bytes that were read already are handled
    /// after that call.
    pub fn pause_reading(&mut self) {
        self.holds.insert(InputHolds::PAUSED);
    }

    /// Parks this connection: no further input is handled until
    /// [`Connections::unpark`](crate::Connections::unpark) is called. For a message that is
    /// answered later, if the client's later messages must wait for that answer.
    ///
    /// Input that was read already is kept, at most that of one read, and counts as memory of the
    /// connection. Further input waits in the kernel, as does the end of the input. Frames to the
    /// client, pings, closes and drains go on.
    ///
    /// Silence while parked is no reason for a pong timeout, but the client's system must still
    /// acknowledge the pings. There is no other limit of time; the application should have one.
    pub fn park(&mut self) {
        self.holds.insert(InputHolds::PARKED);
    }
}
