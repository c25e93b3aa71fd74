//! Checks deadlines of connections, and closes connections that are due in a drain.

use std::time::Instant;

use deeperhub_protocol::{CloseCode, CloseReason};

use super::{Next, Worker, callback, liveness};
use crate::connection::State;
use crate::session::{Application, Session};

/// Maximum slab slots whose deadlines one round checks, so that a check of many connections does
/// not delay their messages.
const SLOTS_PER_ROUND: usize = 4096;

/// Progress of a worker's checks of all deadlines. One check may take several rounds.
#[derive(Debug)]
pub(super) struct DeadlineSweep {
    /// Time at which the next check begins.
    next: Instant,
    /// Slab position at which the check continues; `None` between two checks.
    position: Option<usize>,
    /// Bytes queued for the connections that the check has visited.
    queued_bytes: i64,
}

impl DeadlineSweep {
    /// Creates a sweep whose first check begins at `next`.
    pub(super) fn new(next: Instant) -> Self {
        Self { next, position: None, queued_bytes: 0 }
    }

    /// Returns the time at which the next check begins.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Returns `true` if a check continues in the next round.
    pub(super) fn is_under_way(&self) -> bool {
        self.position.is_some()
    }
}

impl<A: Application> Worker<'_, A> {
    /// Checks the deadlines of some connections and calls their sessions' `on_tick`.
    pub(super) fn check_deadlines(&mut self) {
        let from = match self.deadlines.position {
            Some(from) => from,
            None if self.ctx.round.clock.now() >= self.deadlines.next => {
                let round = &mut *self.ctx.round;
                round.buffers.arena.shrink();
                if let Some(capacity) = self.table.shrink() {
                    round.lists.shrink_to(capacity);
                }
                self.deadlines.next = round.clock.now() + self.ctx.shared.config.tick();
                self.deadlines.queued_bytes = 0;
                0
            }
            None => return,
        };
        let capacity = self.table.slab.capacity();
        let to = (from + SLOTS_PER_ROUND).min(capacity);
        for key in from..to {
            self.check_deadline(key as u32);
        }
        self.deadlines.position = (to < capacity).then_some(to);
        if self.deadlines.position.is_none() {
            self.cells.queue_bytes.set(self.deadlines.queued_bytes);
            self.cells.io_uring_workers.set(self.ctx.round.is_batching().into());
        }
    }

    /// Checks the deadline of one connection, and calls its session's `on_tick`.
    fn check_deadline(&mut self, key: u32) {
        let Some(connection) = self.table.slab.get_mut(key as usize) else { return };
        self.deadlines.queued_bytes += connection.outbox.len() as i64;
        let is_open = matches!(connection.state, State::Open(_));
        if self.ctx.round.clock.has_reached(connection.deadline) {
            let next = liveness::on_deadline(connection, key, &mut self.table.progress, &mut self.ctx);
            self.apply(key, next);
        }
        if is_open && let Some(connection) = self.table.get_mut(key) {
            let next = callback::call(connection, key, &mut self.ctx, |session, cx| session.on_tick(cx));
            self.apply(key, next);
        }
    }

    /// Closes as many connections as are due by now in the drain's schedule.
    pub(super) fn close_due_for_drain(&mut self) {
        while let Some(key) = self.take_due_for_drain() {
            self.apply(key, Next::close(CloseReason::new(CloseCode::GoingAway, "the server shuts down")));
        }
    }

    /// Takes the next close of the drain if it is due, and returns the connection to close.
    fn take_due_for_drain(&mut self) -> Option<u32> {
        let drain = self.ctx.drain.as_mut()?;
        if !drain.take_close_if_due(self.ctx.round.clock.now(), self.table.open) {
            return None;
        }
        let key = self.table.next_open(drain.cursor).or_else(|| self.table.next_open(0))?;
        drain.cursor = key.wrapping_add(1);
        Some(key)
    }
}
