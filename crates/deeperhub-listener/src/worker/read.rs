//! Reading in a round: turns of connections, reads, messages.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{self, Poll};

use deeperhub_protocol::frame::{self, Extended, FrameError, Incoming};

use super::Worker;
use crate::connections::{Closing, Connection, Liveness, State, UnreadInput, slow_consumer_reason};
use crate::deflate::{self, Coders};
use crate::round::{FRAME_COST, HANDSHAKE_COST, MESSAGE_COST, TLS_STEP_COST, Turn};
use crate::session::{Application, Context, DirectWrite, Message, Session};

/// Maximum sockets that one round reads from; the others wait for the next.
const READS_PER_ROUND: usize = 256;

/// Maximum reads of one socket in a row, so that a busy peer does not delay the others.
const READS_PER_TURN: usize = 4;

/// TLS handshake steps per round. One with an RSA certificate costs most of a millisecond, so a
/// flood of them delays other messages by a few milliseconds only.
const HANDSHAKES_PER_ROUND: usize = 8;

/// Size from which a connection's own replies are written right after its read. Large replies of
/// many connections would leave the cache before the end of the round.
const EARLY_WRITE_BYTES: usize = 8 * 1024;

/// Size of a read after which the connection's next read is not batched. A batch has this much room
/// for each connection.
pub(super) const LONG_READ_BYTES: usize = 4096;

impl<A: Application> Worker<'_, A> {
    /// Gives ready connections their turn, within the round's budget. Newly ready ones go first,
    /// then the backlog.
    pub(super) fn poll_ready(&mut self) {
        self.core.ready.take(&mut self.core.run_queue);
        // New connections go behind those that waited longer.
        self.core.run_queue.append(&mut self.core.arrived);
        if self.core.intake.is_used_up() {
            return self.read_closing_only();
        }
        let mut backlog = std::mem::take(&mut self.core.backlog);
        if !backlog.is_empty() {
            self.core.round.reserve();
        }
        let mut fresh = std::mem::take(&mut self.core.run_queue);
        let count = fresh.len().min(READS_PER_ROUND);
        let done = self.poll_connections(&fresh[..count]);
        fresh.drain(..done);
        // Connections whose turn did not come go in front of those that became ready meanwhile.
        fresh.append(&mut self.core.run_queue);
        self.core.run_queue = fresh;

        self.core.round.release();
        let mut done = 0;
        for &key in backlog.iter().take(READS_PER_ROUND) {
            if self.core.round.is_spent() {
                break;
            }
            done += 1;
            // The list may hold keys of connections that are gone.
            let connection = self.core.connections.get_mut(key as usize);
            if connection.is_some_and(|connection| std::mem::take(&mut connection.flags.in_backlog)) {
                self.read(key);
            }
        }
        backlog.drain(..done);
        backlog.append(&mut self.core.backlog);
        self.core.backlog = backlog;
        self.core.charge_intake();
    }

    /// Reads only from closing connections, while the intake limit is used up. Queued writes go on,
    /// since they free memory.
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

    /// Reads from each connection, in batches where that pays. Returns how many had their turn.
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

    /// Serves a connection that may be ready: schedules blocked writes and reads its input.
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

    /// Handles pending and new input, up to the connection's share of the round.
    pub(super) fn read(&mut self, key: u32) {
        let mut turn = self.core.round.turn();
        self.read_in_turn(key, &mut turn);
    }

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
            // A connection in the backlog is read in its backlog turn.
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
            let max_steps = match core.round.has_reserve() {
                // Some are left for the backlog.
                true => HANDSHAKES_PER_ROUND * 3 / 4,
                false => HANDSHAKES_PER_ROUND,
            };
            if connection.transport.is_handshaking() && steps >= max_steps {
                break;
            }
            core.tls_scratch.received_any = false;
            let read = connection.transport.read(&mut self.scratch, &mut core.tls_scratch);
            if core.tls_scratch.handshake_steps > steps {
                core.round.spend(turn, TLS_STEP_COST);
            }
            if !connection.transport.is_flushed() && !connection.flags.dirty {
                connection.flags.dirty = true;
                core.dirty.push(key);
            }
            let read = match read {
                Ok(0) => return self.end_of_stream(key),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A part of a record is a sign of life, too.
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
            core.received += read as u64;
            connection.flags.reads_long = read > LONG_READ_BYTES;
            let drained = read < self.scratch.len() && connection.transport.clear_readiness();
            let mut scratch = std::mem::take(&mut self.scratch);
            self.process_input(key, &mut scratch[..read], turn);
            self.scratch = scratch;
            if drained && !self.has_unread(key) && !self.arm(key) {
                return;
            }
        }
        self.core.defer(key);
    }

    /// Requests a wake-up when there is more to read. Returns `true` if there is already.
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

    /// Handles a read that found nothing. A connection on its last look now counts as silent.
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

    /// Handles bytes that were read, and keeps the rest for the connection's next turn.
    pub(super) fn process_input(&mut self, key: u32, bytes: &mut [u8], turn: &mut Turn) {
        // Other connections of the batch may have used up the round.
        let is_held = turn.is_over() || self.is_paused(key);
        let handled = if is_held { 0 } else { self.dispatch_input(key, bytes, turn) };
        if let Some(rest) = bytes.get(handled..)
            && !rest.is_empty()
        {
            self.core.intake.spend(rest.len());
            self.keep_unread(key, UnreadInput { bytes: rest.to_vec(), at: 0 });
        }
    }

    fn process_unread(&mut self, key: u32, turn: &mut Turn) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        connection.flags.has_unread = false;
        let Some(UnreadInput { mut bytes, at }) = self.core.unread.remove(&key) else { return };
        let handled = self.dispatch_input(key, bytes.get_mut(at..).unwrap_or_default(), turn);
        let at = at + handled;
        if at < bytes.len() {
            self.keep_unread(key, UnreadInput { bytes, at });
        } else {
            self.core.shrink_unread();
        }
    }

    fn keep_unread(&mut self, key: u32, unread: UnreadInput) {
        if let Some(connection) = self.core.connections.get_mut(key as usize) {
            connection.flags.has_unread = true;
            self.core.unread.insert(key, unread);
            self.core.deferred += 1;
        }
    }

    /// Handles bytes that were read, within the turn, and returns how many. A pause ends it at
    /// once.
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
                State::Closing(Closing::CloseFrame) => {
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

    /// Skips input up to the close frame of a client that was sent one.
    fn skip_to_close(&mut self, key: u32, bytes: &mut [u8]) {
        let Some(connection) = self.core.connections.get_mut(key as usize) else { return };
        let mut pos = 0;
        loop {
            let (deflate, input) = (connection.flags.deflate, &mut *bytes);
            match deflate::skip(deflate, &mut connection.decoder, &self.core.limits, input, &mut pos) {
                Ok(Some(Extended::Plain(Incoming::Close(_)))) => {
                    connection.state = State::Closing(Closing::Flush);
                    return self.core.mark_dirty(key);
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => {
                    connection.state = State::Closing(Closing::Eof);
                    return self.core.mark_dirty(key);
                }
            }
        }
    }

    /// Decodes input and gives messages to the session. Returns the number of bytes handled.
    fn decode(&mut self, key: u32, input: &mut [u8], turn: &mut Turn) -> usize {
        let mut pos = 0;
        // Repeats while the socket takes a queue that passed its limit.
        while self.decode_on(key, input, &mut pos, turn) {}
        pos
    }

    /// Decodes from `pos` on. Returns `true` if the queue passed its limit, the socket took it, and
    /// input may be left.
    fn decode_on(&mut self, key: u32, input: &mut [u8], pos: &mut usize, turn: &mut Turn) -> bool {
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
            (&mut self.worker_state, core.now, core.arena.replies(), &core.limits);
        let max_queue_bytes = core.config.max_queue_bytes;
        let (deflate, Coders { outgoing, incoming }) = (flags.deflate, &mut core.coders);
        let (tls_scratch, sent, round) = (&mut core.tls_scratch, &mut core.sent, &mut core.round);
        let (end, is_direct) = (input.len(), !transport.is_tls());
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let (before, arena_before) = (*pos, arena.len());
                let next = match deflate {
                    None => decoder.next(limits, input, pos),
                    Some(params) => incoming.next(key, params, decoder, limits, input, pos),
                };
                let mut charged = 0;
                let mut cx = Context {
                    key,
                    now,
                    worker: &mut *worker_state,
                    outbox: &mut *outbox,
                    arena: &mut *arena,
                    outgoing: &mut *outgoing,
                    deflate,
                    close: &mut close,
                    pause: &mut pause,
                    charged: &mut charged,
                    // Not while more messages of this client are buffered, whose replies leave
                    // together.
                    direct_write: (*pos == end && is_direct && !flags.write_blocked).then_some(DirectWrite {
                        transport: &mut *transport,
                        tls_scratch: &mut *tls_scratch,
                        sent: &mut *sent,
                    }),
                };
                match next {
                    Ok(None) => {
                        let frames = decoder.take_frame_count() as usize * FRAME_COST;
                        round.spend(turn, *pos - before + frames);
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
                                // A pong has something to overtake only while deliveries wait.
                                outbox.push_pong(frame::Frame::from_encoded(&arena[start..]));
                                arena.truncate(start);
                            } else {
                                outbox.push_arena(arena, start..arena.len());
                            }
                        }
                    }
                    Ok(Some(Incoming::Pong(_))) => {
                        // A pong that answers our own ping is not rate-limited.
                        if !std::mem::take(&mut flags.awaiting_pong) {
                            session.admit_control_frame(&mut cx);
                        }
                    }
                    Ok(Some(Incoming::Close(close))) => {
                        return Decoded::PeerClose(close.map(|(code, _)| code));
                    }
                    Err(error) => {
                        round.spend(turn, MESSAGE_COST + incoming.take_cost());
                        return Decoded::Fault(error);
                    }
                }
                let inflated_bytes = match deflate {
                    Some(_) => incoming.take_cost() + outgoing.take_cost(),
                    None => 0,
                };
                let replied = arena.len().saturating_sub(arena_before);
                let frames = decoder.take_frame_count() as usize * FRAME_COST;
                round.spend(
                    turn,
                    MESSAGE_COST + (*pos - before) + frames + inflated_bytes + replied + charged,
                );
                if close.is_some() {
                    return Decoded::Part;
                }
                if outbox.len() > max_queue_bytes {
                    return Decoded::Full;
                }
                if pause || turn.is_over() {
                    return Decoded::Part;
                }
            }
        }));
        if pause && !flags.paused {
            flags.paused = true;
            core.paused += 1;
        }
        let is_full = outbox.len() > max_queue_bytes;
        if is_full || (outbox.len() >= EARLY_WRITE_BYTES && !flags.write_blocked) {
            let written = match is_full {
                true => {
                    connection.flush_now(&core.arena, &mut core.gather, &mut core.tls_scratch, &mut core.sent)
                }
                false => {
                    connection.flush(&core.arena, &mut core.gather, &mut core.tls_scratch, &mut core.sent)
                }
            };
            if written.is_err() {
                self.drop_lost(key);
                return false;
            }
            // Bytes that the socket did not take were copied, so the next large reply reuses this
            // memory while it is in the cache.
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
            Ok(Decoded::All | Decoded::Part) => {}
            Ok(Decoded::Full) => {
                if connection.outbox.len() > max_queue_bytes {
                    self.close(key, slow_consumer_reason());
                } else {
                    return !pause && !turn.is_over();
                }
            }
            Ok(Decoded::PeerClose(code)) => self.answer_close(key, code),
            Ok(Decoded::Fault(error)) => {
                self.core.metrics.too_big(&error);
                self.close(key, error.close_reason());
            }
            Err(_) => self.close_after_session_panic(key),
        }
        false
    }
}

/// Result of decoding.
enum Decoded {
    /// All input was decoded.
    All,
    /// Input may be left: the session closed or paused the connection, or its turn is over.
    Part,
    /// The queue is over its limit; input may be left.
    Full,
    PeerClose(Option<u16>),
    Fault(FrameError),
}
