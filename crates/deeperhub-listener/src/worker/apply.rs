//! Applies the verdicts of phases. Only this file ends sessions, queues close frames and removes
//! connections.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use deeperhub_protocol::frame::{self, FrameDecoder};
use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};

use super::{Next, PhaseContext, Worker, callback, liveness, spread};
use crate::connection::{ClosingUntil, Connection, InputHolds, Liveness, State};
use crate::handshake::write_ready;
use crate::metrics::HandshakeOutcome;
use crate::outbox::Outbox;
use crate::session::{Application, Closed, Session};
use crate::table::UnreadInput;

impl<A: Application> Worker<'_, A> {
    /// Applies the verdict of a phase to its connection. Does nothing if the connection does not
    /// exist any more.
    #[inline]
    pub(super) fn apply(&mut self, key: u32, next: Next) {
        match next {
            Next::Continue => self.settle(key),
            next => self.apply_change(key, next),
        }
    }

    /// Lists a connection for writing if it has something to write.
    #[inline]
    fn settle(&mut self, key: u32) {
        if let Some(connection) = self.table.get_mut(key) {
            self.ctx.round.lists.mark_dirty_if_needed(key, connection);
        }
    }

    fn apply_change(&mut self, key: u32, mut next: Next) {
        loop {
            let Some(connection) = self.table.slab.get_mut(key as usize) else { return };
            let lists = &mut self.ctx.round.lists;
            next = match next {
                Next::Continue => return self.settle(key),
                Next::Write => {
                    lists.mark_dirty(key, &mut connection.flags);
                    return;
                }
                Next::Drained => {
                    lists.drained.push(key);
                    Next::Continue
                }
                Next::PollAgain => {
                    lists.run_queue.push(key);
                    Next::Continue
                }
                Next::Defer => {
                    lists.defer(key, &mut connection.flags);
                    Next::Continue
                }
                Next::Hold(holds) => {
                    let added = connection.flags.holds.insert(holds);
                    self.table.paused += usize::from(added.contains(InputHolds::PAUSED));
                    Next::Continue
                }
                Next::Open(rest) => self.open(key, rest),
                Next::Close(reason) => return self.close(key, *reason),
                Next::AnswerClose(code) => return self.answer_close(key, code),
                Next::HalfClosed => {
                    liveness::record_progress(connection, key, &mut self.table.progress);
                    return self.end_session(key, &Closed::Lost, ClosingUntil::Flushed);
                }
                Next::Shed => return self.shed_open(key),
                Next::Refuse(refusal) => return self.refuse(key, &refusal),
                Next::AnswerProbe(refusal) => return self.answer_probe(key, refusal.as_deref()),
                Next::FailTls => return self.fail_tls(key),
                Next::Lost => {
                    connection.transport.close_notify();
                    if matches!(connection.state, State::Handshake(_)) {
                        self.ctx.shared.metrics.record_handshake(HandshakeOutcome::Lost);
                    }
                    self.end_session(key, &Closed::Lost, ClosingUntil::Flushed);
                    return self.remove(key);
                }
                Next::Remove => return self.remove(key),
            };
        }
    }

    /// Counts a session that begins, keeps the input that followed its request, and calls its
    /// `on_open`.
    fn open(&mut self, key: u32, rest: Option<Box<UnreadInput>>) -> Next {
        self.table.open += 1;
        if let Some(rest) = rest {
            self.table.store_unread(key, *rest);
        }
        let Some(connection) = self.table.get_mut(key) else { return Next::Continue };
        callback::call(connection, key, &mut self.ctx, |session, cx| session.on_open(cx))
    }

    /// Starts closing a connection and ends its session. Queued frames, the session's last frames
    /// and the close frame are still sent. A slow consumer's queued frames are dropped.
    fn close(&mut self, key: u32, reason: CloseReason) {
        let Some(connection) = self.table.slab.get_mut(key as usize) else { return };
        let State::Open(session) = &mut connection.state else { return };
        let (shared, round) = (&*self.ctx.shared, &mut *self.ctx.round);
        let code = reason.code();
        let mut retry_after = None;
        match code {
            CloseCode::SlowConsumer => {
                shared.metrics.slow_consumers.inc();
                connection.outbox.clear();
                retry_after = Some(spread(key, Duration::from_secs(2)));
            }
            CloseCode::PongTimeout => shared.metrics.pong_timeouts.inc(),
            CloseCode::GoingAway => {
                let drain = self.ctx.drain.as_ref();
                retry_after = drain.map(|drain| drain.take_reconnect_delay(round.clock.now()));
            }
            CloseCode::PolicyViolation => retry_after = Some(Duration::from_secs(10)),
            CloseCode::InternalError => retry_after = Some(spread(key, Duration::from_secs(1))),
            _ => {}
        }
        let arena = &mut round.buffers.arena;
        let start = arena.len();
        if code.sends_goodbye() {
            let out = arena.replies();
            let result =
                catch_unwind(AssertUnwindSafe(|| session.on_server_close(&reason, retry_after, out)));
            if result.is_err() {
                shared.metrics.session_panics.inc();
                arena.truncate(start);
            }
        }
        frame::write_close(arena.replies(), Some(code.as_u16()), reason.text());
        connection.outbox.push_arena(arena.bytes(), start..arena.len());
        let until = match code {
            CloseCode::ProtocolError | CloseCode::InvalidUtf8 | CloseCode::MessageTooBig => ClosingUntil::Eof,
            _ => ClosingUntil::CloseFrame,
        };
        liveness::record_progress(connection, key, &mut self.table.progress);
        self.end_session(key, &Closed::ByServer(reason), until);
    }

    /// Answers a client's close frame with the same code (RFC 6455 section 5.5.1), after the queued
    /// frames.
    fn answer_close(&mut self, key: u32, code: Option<u16>) {
        let Some(connection) = self.table.slab.get_mut(key as usize) else { return };
        if !matches!(connection.state, State::Open(_)) {
            return;
        }
        if !connection.is_written() {
            liveness::record_progress(connection, key, &mut self.table.progress);
        }
        let arena = &mut self.ctx.round.buffers.arena;
        let start = arena.len();
        frame::write_close(arena.replies(), code, "");
        connection.outbox.push_arena(arena.bytes(), start..arena.len());
        self.end_session(key, &Closed::ByPeer { code }, ClosingUntil::Flushed);
    }

    /// Closes a connection because memory is short, and discards its further input.
    fn shed_open(&mut self, key: u32) {
        if !self.table.get(key).is_some_and(|connection| matches!(connection.state, State::Open(_))) {
            return;
        }
        self.close(key, CloseReason::new(CloseCode::SlowConsumer, "too slow: memory is short"));
        let Some(connection) = self.table.get_mut(key) else { return };
        connection.decoder = FrameDecoder::new();
        connection.transport.ignore_input();
        connection.state = State::Closing(ClosingUntil::Eof);
        self.ctx.round.codec.decompressor.remove_history(key, connection.flags.deflate);
        self.table.discard_unread(key);
    }

    /// Answers a handshake with a refusal, and starts closing the connection.
    fn refuse(&mut self, key: u32, refusal: &Refusal) {
        let Some(Connection { state: State::Handshake(handshake), .. }) = self.table.get(key) else { return };
        let Refusal { status, code, message, .. } = refusal;
        tracing::debug!(peer = %handshake.peer, status, code, why = %message, "Handshake refused");
        self.ctx.shared.metrics.record_handshake(HandshakeOutcome::Refused);
        self.answer_http(key, |out, is_head| write_refusal(refusal, out, is_head));
    }

    /// Answers a readiness probe, and starts closing the connection.
    fn answer_probe(&mut self, key: u32, refusal: Option<&Refusal>) {
        self.answer_http(key, |out, is_head| match refusal {
            None => write_ready(out, is_head),
            Some(refusal) => write_refusal(refusal, out, is_head),
        });
    }

    /// Queues the HTTP response to a request that does not become a WebSocket, and starts closing
    /// the connection. `write` appends the response; its second argument is `true` for a HEAD
    /// request.
    fn answer_http(&mut self, key: u32, write: impl FnOnce(&mut Vec<u8>, bool)) {
        let Some(connection) = self.table.slab.get_mut(key as usize) else { return };
        let State::Handshake(handshake) = &connection.state else { return };
        let round = &mut *self.ctx.round;
        let is_head = handshake.is_head;
        // Input that arrived during the application's decision was not read. A closing connection
        // is read to its end, since unread input would reset it.
        if handshake.decision.is_some() {
            round.lists.run_queue.push(key);
        }
        let arena = &mut round.buffers.arena;
        let start = arena.len();
        write(arena.replies(), is_head);
        connection.outbox.push_arena(arena.bytes(), start..arena.len());
        connection.state = State::Closing(ClosingUntil::Eof);
        connection.deadline = round.clock.deadline(self.ctx.shared.config.close_timeout);
        round.lists.mark_dirty(key, &mut connection.flags);
    }

    /// Starts closing a connection whose input is invalid TLS. A pending TLS alert is still sent.
    fn fail_tls(&mut self, key: u32) {
        self.end_session(key, &Closed::Lost, ClosingUntil::Eof);
        let Some(connection) = self.table.slab.get_mut(key as usize) else { return };
        let (shared, round) = (&*self.ctx.shared, &mut *self.ctx.round);
        if matches!(connection.state, State::Handshake(_)) {
            shared.metrics.record_handshake(HandshakeOutcome::TlsFailed);
        }
        // Queued frames can no longer be encrypted.
        connection.outbox = Outbox::default();
        connection.state = State::Closing(ClosingUntil::Eof);
        connection.deadline = round.clock.deadline(shared.config.close_timeout);
        round.lists.mark_dirty(key, &mut connection.flags);
        round.lists.run_queue.push(key);
    }

    /// Takes the session of an open connection and calls its `on_close`. The connection is then
    /// closing. Does nothing if the connection is not open.
    fn end_session(&mut self, key: u32, closed: &Closed, until: ClosingUntil) {
        let Some(connection) = self.table.slab.get_mut(key as usize) else { return };
        if !matches!(connection.state, State::Open(_)) {
            return;
        }
        let State::Open(session) = std::mem::replace(&mut connection.state, State::Closing(until)) else {
            return;
        };
        let round = &mut *self.ctx.round;
        let flags = &mut connection.flags;
        connection.deadline = round.clock.deadline(self.ctx.shared.config.close_timeout);
        flags.awaiting_pong = false;
        flags.wants_drain = false;
        flags.liveness = Liveness::Alive;
        let holds = std::mem::take(&mut flags.holds);
        self.table.paused -= usize::from(holds.contains(InputHolds::PAUSED));
        // Resume reading if it had stopped: the session held it, the queue was full, or a turn was
        // over. A closing connection is read to its end.
        if std::mem::take(&mut flags.over_queue_limit) || !holds.is_empty() || flags.has_unread {
            round.lists.run_queue.push(key);
        }
        self.table.open -= 1;
        round.lists.mark_dirty(key, flags);
        report_end(session, key, closed, &mut self.ctx);
    }

    /// Removes a connection and everything that the worker holds for it. Lists may still have its
    /// key.
    fn remove(&mut self, key: u32) {
        if let Some(connection) = self.table.remove(key) {
            debug_assert!(!matches!(connection.state, State::Open(_)), "the session has not ended");
            self.ctx.round.codec.decompressor.remove_history(key, connection.flags.deflate);
        }
    }
}

/// Calls `on_close` of a session that was taken from its connection.
pub(super) fn report_end<A: Application>(
    mut session: A::Session,
    key: u32,
    closed: &Closed,
    ctx: &mut PhaseContext<'_, A>,
) {
    let worker_state = &mut ctx.worker_state;
    let result = catch_unwind(AssertUnwindSafe(|| session.on_close(key, closed, worker_state)));
    if result.is_err() {
        ctx.shared.metrics.session_panics.inc();
    }
}

/// Appends a refusal. A response to HEAD has no body (RFC 9110 section 9.3.2).
fn write_refusal(refusal: &Refusal, out: &mut Vec<u8>, is_head: bool) {
    if is_head { refusal.write_head(out) } else { refusal.write(out) }
}
