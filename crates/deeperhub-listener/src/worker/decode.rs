//! Phase that decodes input and passes messages to the session.

use std::panic::{AssertUnwindSafe, catch_unwind};

use deeperhub_protocol::frame::{self, FrameError, Incoming};

use super::callback::record_panic;
use super::next::slow_consumer_reason;
use super::{Next, PhaseContext};
use crate::connection::{Connection, InputHolds, State};
use crate::deflate::DeflateCodec;
use crate::round::{Buffers, FRAME_COST, MESSAGE_COST, Turn};
use crate::session::{Application, Context, DirectWrite, Message, Session};

/// Minimum queue length at which a connection's replies are written right after its read. Large
/// replies of many connections would leave the cache before the end of the round.
const EARLY_WRITE_BYTES: usize = 8 * 1024;

/// Reason for which decoding stopped.
enum Decoded {
    /// All input was decoded.
    All,
    /// The session closed or parked the connection or paused reading, or the turn is over. Input
    /// may be left.
    Stopped,
    /// The connection's queue is over its limit. Input may be left.
    QueueFull,
    /// The client sent a close frame, with this code if the frame had one.
    PeerClose(Option<u16>),
    /// The input violates the protocol or a limit.
    Invalid(FrameError),
}

/// Decodes input from `pos` on and passes messages to the session, until the turn is over, or the
/// session pauses reading or parks the connection.
pub(super) fn decode<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    input: &mut [u8],
    pos: &mut usize,
    turn: &mut Turn,
    ctx: &mut PhaseContext<'_, A>,
) -> Next {
    // Decoding continues whenever the socket took a queue that had passed its limit.
    loop {
        if let Some(next) = decode_until_queue_full(connection, key, input, pos, turn, ctx) {
            return next;
        }
    }
}

/// Decodes input from `pos` on, until the turn is over or the queue passes its limit. Returns
/// `None` if the socket then took enough of the queue, so that decoding continues.
fn decode_until_queue_full<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    input: &mut [u8],
    pos: &mut usize,
    turn: &mut Turn,
    ctx: &mut PhaseContext<'_, A>,
) -> Option<Next> {
    let Connection { state: State::Open(session), decoder, outbox, flags, transport, .. } = connection else {
        return Some(Next::Continue);
    };
    let mut close = None;
    let mut holds = InputHolds::default();
    let (worker_state, limits) = (&mut ctx.worker_state, &ctx.shared.frame_limits);
    let max_queue_bytes = ctx.shared.limits.max_queue_bytes;
    let (now, budget) = (ctx.round.clock.now(), &mut ctx.round.budget);
    let (deflate, DeflateCodec { compressor, decompressor }) = (flags.deflate, &mut ctx.round.codec);
    let Buffers { arena, tls_scratch, sent, .. } = &mut ctx.round.buffers;
    let arena_start = arena.len();
    let arena = arena.replies();
    let (end, is_plain) = (input.len(), !transport.is_tls());
    let result = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let (message_start, reply_start) = (*pos, arena.len());
            let next = match deflate {
                None => decoder.next(limits, input, pos),
                Some(params) => decompressor.next(key, params, decoder, limits, input, pos),
            };
            let mut charged = 0;
            let mut cx = Context {
                key,
                now,
                worker: &mut *worker_state,
                outbox: &mut *outbox,
                arena: &mut *arena,
                compressor: &mut *compressor,
                deflate,
                close: &mut close,
                holds: &mut holds,
                charged: &mut charged,
                // Only the reply to the last buffered message may be written directly. Replies to
                // earlier ones are written together.
                direct_write: (*pos == end && is_plain && !flags.write_blocked).then_some(DirectWrite {
                    transport: &mut *transport,
                    tls_scratch: &mut *tls_scratch,
                    sent: &mut *sent,
                }),
            };
            match next {
                Ok(None) => {
                    let frames = decoder.take_frame_count() as usize * FRAME_COST;
                    budget.spend(turn, *pos - message_start + frames);
                    return Decoded::All;
                }
                Ok(Some(Incoming::Text(text))) => session.on_message(Message::Text(text), &mut cx),
                Ok(Some(Incoming::Binary(bytes))) => {
                    session.on_message(Message::Binary(bytes), &mut cx);
                }
                Ok(Some(Incoming::Ping(payload))) => {
                    if session.admit_control_frame(&mut cx) {
                        let start = arena.len();
                        frame::write_pong(arena, payload);
                        if flags.write_blocked {
                            // Deliveries wait for the socket. The pong is sent before them.
                            outbox.push_pong(frame::Frame::from_encoded(&arena[start..]));
                            arena.truncate(start);
                        } else {
                            outbox.push_arena(arena, start..arena.len());
                        }
                    }
                }
                Ok(Some(Incoming::Pong(_))) => {
                    // A pong that answers the listener's ping is not rate-limited.
                    if !std::mem::take(&mut flags.awaiting_pong) {
                        session.admit_control_frame(&mut cx);
                    }
                }
                Ok(Some(Incoming::Close(close))) => {
                    return Decoded::PeerClose(close.map(|(code, _)| code));
                }
                Err(error) => {
                    budget.spend(turn, MESSAGE_COST + decompressor.take_cost());
                    return Decoded::Invalid(error);
                }
            }
            let compression_cost = match deflate {
                Some(_) => decompressor.take_cost() + compressor.take_cost(),
                None => 0,
            };
            let reply_bytes = arena.len().saturating_sub(reply_start);
            let frames = decoder.take_frame_count() as usize * FRAME_COST;
            let cost = MESSAGE_COST + (*pos - message_start) + frames;
            budget.spend(turn, (cost + compression_cost + reply_bytes).saturating_add(charged));
            if close.is_some() {
                return Decoded::Stopped;
            }
            if outbox.len() > max_queue_bytes {
                return Decoded::QueueFull;
            }
            if !holds.is_empty() || turn.is_over() {
                return Decoded::Stopped;
            }
        }
    }));
    let decoded = result.unwrap_or_else(|_| {
        close = Some(record_panic(&ctx.shared.metrics));
        Decoded::Stopped
    });
    let is_over_limit = outbox.len() > max_queue_bytes;
    if is_over_limit || (outbox.len() >= EARLY_WRITE_BYTES && !flags.write_blocked) {
        let buffers = &mut ctx.round.buffers;
        let written = if is_over_limit { connection.flush_now(buffers) } else { connection.flush(buffers) };
        if written.is_err() {
            return Some(Next::Lost);
        }
        // Bytes that the socket did not take were copied out of the arena. The next large reply
        // thus reuses this memory while it is in the cache.
        buffers.arena.truncate(arena_start);
    }
    if let Some(reason) = close {
        return Some(Next::close(reason));
    }
    match decoded {
        Decoded::All | Decoded::Stopped => Some(Next::hold(holds)),
        Decoded::QueueFull if connection.outbox.len() > max_queue_bytes => {
            Some(Next::close(slow_consumer_reason()))
        }
        Decoded::QueueFull => (!holds.is_empty() || turn.is_over()).then(|| Next::hold(holds)),
        Decoded::PeerClose(code) => Some(Next::AnswerClose(code)),
        Decoded::Invalid(error) => {
            ctx.shared.metrics.record_too_big(&error);
            Some(Next::close(error.close_reason()))
        }
    }
}
