//! Reads and handles the input of a worker's connections.
//!
//! Each ready connection gets a *turn* per round: a share of the round's budget. A connection whose
//! turn ends with input left goes to the *backlog*, whose connections get their turns after the
//! newly ready ones.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{self, Poll};

use deeperhub_protocol::frame::{self, Extended, FrameError, Incoming};

use super::Worker;
use crate::connections::{ClosingUntil, Connection, Liveness, State, UnreadInput, slow_consumer_reason};
use crate::deflate::{self, DeflateCodec};
use crate::round::{FRAME_COST, HANDSHAKE_COST, MESSAGE_COST, TLS_STEP_COST, Turn};
use crate::session::{Application, Context, DirectWrite, Message, Session};

/// Maximum connections that get a turn in one round: this many newly ready ones, and as many of the
/// backlog. The others wait for the next round.
const MAX_TURNS_PER_ROUND: usize = 256;

/// Maximum reads of one connection in a turn, so that a busy client does not delay the others.
/// Handling its unread input counts as a read. A batched read at the start of a turn does not
/// count.
const READS_PER_TURN: usize = 4;

/// Maximum TLS handshake steps in one round. A step with an RSA certificate takes most of a
/// millisecond, so a flood of handshakes delays messages by a few milliseconds only.
const TLS_STEPS_PER_ROUND: usize = 8;

/// Minimum queue length at which a connection's replies are written right after its read. Large
/// replies of many connections would leave the cache before the end of the round.
const EARLY_WRITE_BYTES: usize = 8 * 1024;

/// Maximum length of a single read after which the connection's next read may be batched. Buffers
/// for batched reads are slightly longer. After a read that fills its buffer, the connection's next
/// read is not batched either.
pub(super) const LONG_READ_BYTES: usize = 4096;

impl<A: Application> Worker<'_, A> {
    /// Gives ready connections a turn, within the round's budget: first the newly ready ones, then
    /// the backlog.
    pub(super) fn poll_ready(&mut self) {
        self.core.ready.take(&mut self.core.run_queue);
        // New connections come after those that have waited longer.
        self.core.run_queue.append(&mut self.core.arrived);
        if self.core.intake.is_used_up() {
            return self.read_closing_only();
        }
        let mut backlog = std::mem::take(&mut self.core.backlog);
        if !backlog.is_empty() {
            // Keeps a quarter of the round for the backlog.
            self.core.round.reserve();
        }
        let mut newly_ready = std::mem::take(&mut self.core.run_queue);
        let count = newly_ready.len().min(MAX_TURNS_PER_ROUND);
        let polled = self.poll_connections(&newly_ready[..count]);
        newly_ready.drain(..polled);
        // Connections that got no turn come before those that became ready meanwhile.
        newly_ready.append(&mut self.core.run_queue);
        self.core.run_queue = newly_ready;

        // The backlog may use the whole rest of the round.
        self.core.round.release();
        let mut polled = 0;
        for &key in backlog.iter().take(MAX_TURNS_PER_ROUND) {
            if self.core.round.is_spent() {
                break;
            }
            polled += 1;
            // The backlog may hold keys of removed connections.
            let connection = self.core.connections.get_mut(key as usize);
            if connection.is_some_and(|connection| std::mem::take(&mut connection.flags.in_backlog)) {
                self.read(key);
            }
        }
        backlog.drain(..polled);
        backlog.append(&mut self.core.backlog);
        self.core.backlog = backlog;
        self.core.charge_intake();
    }

    /// Reads from closing connections only, and moves the others to the backlog. Called while the
    /// intake limit is used up. Blocked writes are still rescheduled, since they free memory.
    fn read_closing_only(&mut self) {
        for key in std::mem::take(&mut self.core.run_queue) {
            let Some(connection) = self.core.connections.get_mut(key as usize) else { continue };
            if matches!(connection.state, State::Closing(_)) {
                self.poll_connection(key);
            } else {
                self.reschedule_write(key);
                self.core.defer(key);
            }
        }
    }

    /// Polls connections in order until the round's budget is spent, in batches if io_uring is
    /// used. Returns how many were polled.
    fn poll_connections(&mut self, keys: &[u32]) -> usize {
        #[cfg(feature = "io-uring")]
        if self.core.is_batching() {
            return self.poll_in_batches(keys);
        }
        for (nth, &key) in keys.iter().enumerate() {
            if self.core.round.is_spent() {
                return nth;
            }
            self.poll_connection(key);
        }
        keys.len()
    }

    /// Polls a connection that may be ready: reschedules a blocked write, and reads its input.
    pub(super) fn poll_connection(&mut self, key: u32) {
        self.reschedule_write(key);
        self.read(key);
    }

    /// Lists a connection for writing again if its last write was blocked.
    fn reschedule_write(&mut self, key: u32) {
        if let Some(connection) = self.core.connections.get_mut(key as usize)
            && std::mem::take(&mut connection.flags.write_blocked)
        {
            self.core.mark_dirty(key);
        }
    }

    /// Gives a connection a turn: handles its unread input and new input.
    pub(super) fn read(&mut self, key: u32) {
        let mut turn = self.core.round.turn();
        self.read_in_turn(key, &mut turn);
    }

    /// Reads and handles input until there is none left or the turn is over. A connection with
    /// input left goes to the backlog.
    pub(super) fn read_in_turn(&mut self, key: u32, turn: &mut Turn) {
        for nth in 0.. {
            let core = &mut *self.core;
            let Some(connection) = core.connections.get_mut(key as usize) else { return };
            match &connection.state {
                State::Handshake(handshake) if handshake.decision.is_some() => {
                    return self.poll_decision(key, turn);
                }
                State::Open(_) if connection.flags.paused || connection.flags.over_queue_limit => return,
                _ => {}
            }
            // A connection in the backlog is read when its turn there comes.
            if connection.flags.in_backlog {
                return;
            }
            if turn.is_over() || nth == READS_PER_TURN {
                break;
            }
            if connection.flags.has_unread {
                self.process_unread(key, turn);
                continue;
            }
            let steps = core.tls_scratch.handshake_steps;
            // A quarter of the steps is reserved for the backlog.
            let max_steps =
                if core.round.has_reserve() { TLS_STEPS_PER_ROUND * 3 / 4 } else { TLS_STEPS_PER_ROUND };
            if connection.transport.is_handshaking() && steps >= max_steps {
                break;
            }
            core.tls_scratch.received_any = false;
            let result = connection.transport.read(&mut self.read_buffer, &mut core.tls_scratch);
            if core.tls_scratch.handshake_steps > steps {
                core.round.spend(turn, TLS_STEP_COST);
            }
            if !connection.transport.is_flushed() && !connection.flags.dirty {
                connection.flags.dirty = true;
                core.dirty.push(key);
            }
            let len = match result {
                Ok(0) => return self.end_of_stream(key),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Part of a TLS record is a sign of life, too.
                    if std::mem::take(&mut core.tls_scratch.received_any) {
                        self.record_sign_of_life(key);
                    }
                    if self.arm(key) {
                        continue;
                    }
                    return self.mark_silent(key);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return self.fail_tls(key),
                Err(_) => return self.drop_lost(key),
            };
            core.received += len as u64;
            connection.flags.reads_long = len > LONG_READ_BYTES;
            let is_drained = len < self.read_buffer.len() && connection.transport.clear_readiness();
            let mut read_buffer = std::mem::take(&mut self.read_buffer);
            self.process_input(key, &mut read_buffer[..len], turn);
            self.read_buffer = read_buffer;
            if is_drained && !self.has_unread(key) && !self.arm(key) {
                return;
            }
        }
        self.core.defer(key);
    }

    /// Requests a wake-up for new input. Returns `true` if the socket is readable now. Returns
    /// `false` also if the socket failed; the connection is then removed.
    pub(super) fn arm(&mut self, key: u32) -> bool {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return false };
        let mut cx = task::Context::from_waker(&connection.waker);
        match connection.transport.arm_read(&mut cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                self.drop_lost(key);
                false
            }
        }
    }

    /// Marks a connection as silent if its [final read](Liveness::FinalRead) found no input. Called
    /// when the socket had no input.
    pub(super) fn mark_silent(&mut self, key: u32) {
        let now = self.clock();
        if let Some(connection) = self.core.connections.get_mut(key as usize)
            && connection.flags.liveness == Liveness::FinalRead
        {
            connection.flags.liveness = Liveness::Silent;
            connection.deadline = now;
        }
    }

    fn is_paused(&self, key: u32) -> bool {
        self.core.connections.get(key as usize).is_some_and(|connection| connection.flags.paused)
    }

    pub(super) fn has_unread(&self, key: u32) -> bool {
        self.core.connections.get(key as usize).is_some_and(|connection| connection.flags.has_unread)
    }

    /// Handles bytes that were read, and stores the rest for the connection's next turn.
    pub(super) fn process_input(&mut self, key: u32, bytes: &mut [u8], turn: &mut Turn) {
        // The turn may be over already: other connections of a batched read spend the same budget.
        let is_held = turn.is_over() || self.is_paused(key);
        let handled = if is_held { 0 } else { self.dispatch_input(key, bytes, turn) };
        if let Some(rest) = bytes.get(handled..)
            && !rest.is_empty()
        {
            self.core.intake.spend(rest.len());
            self.store_unread(key, UnreadInput { bytes: rest.to_vec(), at: 0 });
        }
    }

    /// Handles bytes that an earlier turn read but did not handle.
    fn process_unread(&mut self, key: u32, turn: &mut Turn) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        connection.flags.has_unread = false;
        let Some(UnreadInput { mut bytes, at }) = self.core.unread.remove(&key) else { return };
        let handled = self.dispatch_input(key, bytes.get_mut(at..).unwrap_or_default(), turn);
        let at = at + handled;
        if at < bytes.len() {
            self.store_unread(key, UnreadInput { bytes, at });
        } else {
            self.core.shrink_unread();
        }
    }

    /// Stores bytes that were read but not handled.
    fn store_unread(&mut self, key: u32, unread: UnreadInput) {
        if let Some(connection) = self.core.connections.get_mut(key as usize) {
            connection.flags.has_unread = true;
            self.core.unread.insert(key, unread);
            self.core.deferred += 1;
        }
    }

    /// Handles input according to the connection's state, until the turn is over or the session
    /// pauses reading. Returns the number of bytes handled.
    fn dispatch_input(&mut self, key: u32, bytes: &mut [u8], turn: &mut Turn) -> usize {
        let mut at = 0;
        loop {
            let Some(connection) = self.core.connections.get_mut(key as usize) else { return bytes.len() };
            let rest = bytes.get_mut(at..).unwrap_or_default();
            match &connection.state {
                State::Handshake(_) => {
                    self.core.round.spend(turn, HANDSHAKE_COST);
                    self.feed_handshake(key, rest, turn);
                    return bytes.len();
                }
                State::Open(_) => {
                    // Any byte is a sign of life.
                    if connection.flags.liveness != Liveness::Alive {
                        self.record_sign_of_life(key);
                    }
                    at += self.decode(key, rest, turn);
                    let connection = self.core.connections.get(key as usize);
                    if connection.is_some_and(|connection| matches!(connection.state, State::Open(_))) {
                        return at;
                    }
                }
                State::Closing(ClosingUntil::CloseFrame) => {
                    self.core.round.spend(turn, rest.len());
                    self.skip_to_close(key, rest);
                    return bytes.len();
                }
                State::Closing(_) => {
                    self.core.round.spend(turn, rest.len());
                    return bytes.len();
                }
            }
        }
    }

    /// Discards input up to the client's close frame. Called after the server's close frame was
    /// sent.
    fn skip_to_close(&mut self, key: u32, bytes: &mut [u8]) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let mut pos = 0;
        loop {
            let (deflate, input) = (connection.flags.deflate, &mut *bytes);
            match deflate::decode_without_inflating(
                deflate,
                &mut connection.decoder,
                &self.core.frame_limits,
                input,
                &mut pos,
            ) {
                Ok(Some(Extended::Plain(Incoming::Close(_)))) => {
                    connection.state = State::Closing(ClosingUntil::Flushed);
                    return self.core.mark_dirty(key);
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => {
                    connection.state = State::Closing(ClosingUntil::Eof);
                    return self.core.mark_dirty(key);
                }
            }
        }
    }

    /// Decodes input and passes messages to the session. Returns the number of bytes handled.
    fn decode(&mut self, key: u32, input: &mut [u8], turn: &mut Turn) -> usize {
        let mut pos = 0;
        // Decoding continues whenever the socket took a queue that had passed its limit.
        while self.decode_until_queue_full(key, input, &mut pos, turn) {}
        pos
    }

    /// Decodes input from `pos` on, until the turn is over or the queue passes its limit. Returns
    /// `true` if the socket then took enough of the queue, so that decoding may continue.
    fn decode_until_queue_full(
        &mut self,
        key: u32,
        input: &mut [u8],
        pos: &mut usize,
        turn: &mut Turn,
    ) -> bool {
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return false };
        let Connection { state: State::Open(session), decoder, outbox, flags, transport, .. } = connection
        else {
            return false;
        };
        let mut close = None;
        let mut pause = false;
        let arena_start = core.arena.len();
        let (worker_state, now, arena, limits) =
            (&mut self.worker_state, core.now, core.arena.replies(), &core.frame_limits);
        let max_queue_bytes = core.limits.max_queue_bytes;
        let (deflate, DeflateCodec { compressor, decompressor }) = (flags.deflate, &mut core.codec);
        let (tls_scratch, sent, round) = (&mut core.tls_scratch, &mut core.sent, &mut core.round);
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
                    pause: &mut pause,
                    charged: &mut charged,
                    // Only the reply to the last buffered message may be written directly. Replies
                    // to earlier ones are written together.
                    direct_write: (*pos == end && is_plain && !flags.write_blocked).then_some(DirectWrite {
                        transport: &mut *transport,
                        tls_scratch: &mut *tls_scratch,
                        sent: &mut *sent,
                    }),
                };
                match next {
                    Ok(None) => {
                        let frames = decoder.take_frame_count() as usize * FRAME_COST;
                        round.spend(turn, *pos - message_start + frames);
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
                        round.spend(turn, MESSAGE_COST + decompressor.take_cost());
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
                round.spend(turn, cost + compression_cost + reply_bytes + charged);
                if close.is_some() {
                    return Decoded::Stopped;
                }
                if outbox.len() > max_queue_bytes {
                    return Decoded::QueueFull;
                }
                if pause || turn.is_over() {
                    return Decoded::Stopped;
                }
            }
        }));
        if pause && !flags.paused {
            flags.paused = true;
            core.paused += 1;
        }
        let is_over_limit = outbox.len() > max_queue_bytes;
        if is_over_limit || (outbox.len() >= EARLY_WRITE_BYTES && !flags.write_blocked) {
            let (arena, gather) = (&core.arena, &mut core.gather);
            let (tls_scratch, sent) = (&mut core.tls_scratch, &mut core.sent);
            let result = if is_over_limit {
                connection.flush_now(arena, gather, tls_scratch, sent)
            } else {
                connection.flush(arena, gather, tls_scratch, sent)
            };
            if result.is_err() {
                self.drop_lost(key);
                return false;
            }
            // Bytes that the socket did not take were copied out of the arena. The next large reply
            // thus reuses this memory while it is in the cache.
            core.arena.truncate(arena_start);
        }
        if !connection.outbox.is_empty() && !connection.flags.dirty {
            connection.flags.dirty = true;
            core.dirty.push(key);
        }
        if let Some(reason) = close {
            self.close(key, reason);
            return false;
        }
        match result {
            Ok(Decoded::All | Decoded::Stopped) => {}
            Ok(Decoded::QueueFull) => {
                if connection.outbox.len() > max_queue_bytes {
                    self.close(key, slow_consumer_reason());
                } else {
                    return !pause && !turn.is_over();
                }
            }
            Ok(Decoded::PeerClose(code)) => self.answer_close(key, code),
            Ok(Decoded::Invalid(error)) => {
                self.core.metrics.record_too_big(&error);
                self.close(key, error.close_reason());
            }
            Err(_) => self.close_after_session_panic(key),
        }
        false
    }
}

/// Reason for which decoding stopped.
enum Decoded {
    /// All input was decoded.
    All,
    /// The session closed the connection or paused reading, or the turn is over. Input may be left.
    Stopped,
    /// The connection's queue is over its limit. Input may be left.
    QueueFull,
    /// The client sent a close frame, with this code if the frame had one.
    PeerClose(Option<u16>),
    /// The input violates the protocol or a limit.
    Invalid(FrameError),
}
