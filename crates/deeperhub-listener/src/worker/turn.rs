//! Gives ready connections their turns.
//!
//! Each ready connection gets a *turn* per round: a share of the round's budget. A connection whose
//! turn ends with input left goes to the *backlog*, whose connections get their turns after the
//! newly ready ones.

use super::read::{Received, TurnStep};
use super::{Next, Worker, handshake, input, liveness, read, write};
use crate::connection::{Liveness, State};
use crate::round::Turn;
use crate::session::Application;
use crate::table::UnreadInput;

/// Maximum connections that get a turn in one round: this many newly ready ones, and as many of the
/// backlog. The others wait for the next round.
const MAX_TURNS_PER_ROUND: usize = 256;

impl<A: Application> Worker<'_, A> {
    /// Gives ready connections a turn, within the round's budget: first the newly ready ones, then
    /// the backlog.
    pub(super) fn poll_ready(&mut self) {
        let lists = &mut self.ctx.round.lists;
        self.ctx.shared.ready.take(&mut lists.run_queue);
        // New connections come after those that have waited longer.
        lists.run_queue.append(&mut lists.arrived);
        if self.ctx.round.intake.is_used_up() {
            return self.read_closing_only();
        }
        let mut backlog = std::mem::take(&mut self.ctx.round.lists.backlog);
        if !backlog.is_empty() {
            // Keeps a quarter of the round for the backlog.
            self.ctx.round.budget.reserve();
        }
        let mut newly_ready = std::mem::take(&mut self.ctx.round.lists.run_queue);
        let count = newly_ready.len().min(MAX_TURNS_PER_ROUND);
        let polled = self.poll_connections(&newly_ready[..count]);
        newly_ready.drain(..polled);
        // Connections that got no turn come before those that became ready meanwhile.
        newly_ready.append(&mut self.ctx.round.lists.run_queue);
        self.ctx.round.lists.run_queue = newly_ready;

        // The backlog may use the whole rest of the round.
        self.ctx.round.budget.release();
        let mut polled = 0;
        for &key in backlog.iter().take(MAX_TURNS_PER_ROUND) {
            if self.ctx.round.budget.is_spent() {
                break;
            }
            polled += 1;
            // The backlog may hold keys of removed connections.
            let connection = self.table.get_mut(key);
            if connection.is_some_and(|connection| std::mem::take(&mut connection.flags.in_backlog)) {
                self.take_turn(key);
            }
        }
        backlog.drain(..polled);
        backlog.append(&mut self.ctx.round.lists.backlog);
        self.ctx.round.lists.backlog = backlog;
        self.ctx.round.charge_intake();
    }

    /// Reads from closing connections only, and moves the others to the backlog. Called while the
    /// intake limit is used up. Blocked writes are still rescheduled, since they free memory.
    fn read_closing_only(&mut self) {
        for key in std::mem::take(&mut self.ctx.round.lists.run_queue) {
            let Some(connection) = self.table.get(key) else { continue };
            if matches!(connection.state, State::Closing(_)) {
                self.poll_connection(key);
            } else {
                self.reschedule_write(key);
                self.apply(key, Next::Defer);
            }
        }
    }

    /// Polls connections in order until the round's budget is spent, in batches if io_uring is
    /// used. Returns how many were polled.
    fn poll_connections(&mut self, keys: &[u32]) -> usize {
        #[cfg(feature = "io-uring")]
        if self.ctx.round.is_batching() {
            return self.poll_in_batches(keys);
        }
        for (nth, &key) in keys.iter().enumerate() {
            if self.ctx.round.budget.is_spent() {
                return nth;
            }
            self.poll_connection(key);
        }
        keys.len()
    }

    /// Polls a connection that may be ready: reschedules a blocked write, and reads its input.
    pub(super) fn poll_connection(&mut self, key: u32) {
        self.reschedule_write(key);
        self.take_turn(key);
    }

    /// Lists a connection for writing again if its last write was blocked.
    fn reschedule_write(&mut self, key: u32) {
        if let Some(connection) = self.table.get_mut(key)
            && let Some(next) = write::unblock(connection)
        {
            self.apply(key, next);
        }
    }

    /// Gives a connection a turn: handles its unread input and new input.
    fn take_turn(&mut self, key: u32) {
        let mut turn = self.ctx.round.budget.turn();
        self.continue_turn(key, &mut turn);
    }

    /// Reads and handles input until there is none left or the turn is over. A connection with
    /// input left goes to the backlog.
    pub(super) fn continue_turn(&mut self, key: u32, turn: &mut Turn) {
        for steps in 0.. {
            let Some(connection) = self.table.slab.get_mut(key as usize) else { return };
            let received = match read::next_step(connection, steps, *turn, self.ctx.round) {
                TurnStep::Read => {
                    let buffer = &mut self.read_buffer;
                    read::read(connection, key, &mut self.table.progress, buffer, turn, &mut self.ctx)
                }
                TurnStep::HandleUnread => {
                    self.handle_unread(key, turn);
                    continue;
                }
                TurnStep::PollDecision => {
                    let next = handshake::poll_decision(connection, key, turn, &mut self.ctx);
                    if !next.changes_state() {
                        return self.apply(key, next);
                    }
                    self.apply(key, next);
                    continue;
                }
                TurnStep::End => return,
                TurnStep::Defer => return self.apply(key, Next::Defer),
            };
            match received {
                Received::Input { len, is_drained } => {
                    let mut buffer = std::mem::take(&mut self.read_buffer);
                    self.handle_input(key, &mut buffer[..len], turn);
                    self.read_buffer = buffer;
                    if is_drained && self.is_waiting_for_input(key) {
                        return;
                    }
                }
                Received::Again => {}
                Received::Nothing(next) => return self.apply(key, next),
            }
        }
    }

    /// Requests a wake-up for a connection whose socket has no more input. Returns `true` if the
    /// turn is over: all input was handled, or the connection is gone.
    pub(super) fn is_waiting_for_input(&mut self, key: u32) -> bool {
        let Some(connection) = self.table.get_mut(key) else { return true };
        if connection.flags.has_unread {
            return false;
        }
        match read::arm(connection) {
            None => false,
            Some(Next::Continue) => true,
            Some(next) => {
                self.apply(key, next);
                true
            }
        }
    }

    /// Handles bytes that were read, and stores the rest for the connection's next turn.
    pub(super) fn handle_input(&mut self, key: u32, bytes: &mut [u8], turn: &mut Turn) {
        let Some(connection) = self.table.get(key) else { return };
        let mut at = 0;
        // The turn may be over already: other connections of a batched read spend the same budget.
        if !turn.is_over() && connection.flags.holds.is_empty() {
            self.dispatch(key, bytes, &mut at, turn);
        }
        if let Some(rest) = bytes.get(at..)
            && !rest.is_empty()
        {
            self.ctx.round.intake.spend(rest.len());
            self.defer_input(key, UnreadInput { bytes: rest.to_vec(), at: 0 });
        }
    }

    /// Handles bytes that an earlier turn read but did not handle.
    fn handle_unread(&mut self, key: u32, turn: &mut Turn) {
        let Some(UnreadInput { mut bytes, mut at }) = self.table.take_unread(key) else { return };
        self.dispatch(key, &mut bytes, &mut at, turn);
        if at < bytes.len() {
            self.defer_input(key, UnreadInput { bytes, at });
        } else {
            self.table.shrink_unread();
        }
    }

    /// Stores bytes that were read but not handled.
    fn defer_input(&mut self, key: u32, unread: UnreadInput) {
        self.table.store_unread(key, unread);
        self.ctx.round.deferred += 1;
    }

    /// Handles input from position `at` on, until the turn is over, or the session pauses reading
    /// or parks the connection. A verdict that changes the connection's state is applied before the
    /// rest of the input is handled. Input of a connection that is removed counts as handled.
    #[inline]
    fn dispatch(&mut self, key: u32, bytes: &mut [u8], at: &mut usize, turn: &mut Turn) {
        while *at < bytes.len() {
            let Some(connection) = self.table.slab.get_mut(key as usize) else {
                *at = bytes.len();
                return;
            };
            // Any byte is a sign of life.
            if connection.flags.liveness != Liveness::Alive {
                liveness::record_sign_of_life(connection, key, &mut self.table.progress, &self.ctx);
            }
            let next = input::handle(connection, key, bytes, at, turn, &mut self.ctx);
            let changes_state = next.changes_state();
            self.apply(key, next);
            if !changes_state {
                return;
            }
        }
    }
}
