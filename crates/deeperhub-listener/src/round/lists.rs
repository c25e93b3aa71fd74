//! The lists of connections that a worker handles next.

use crate::connection::{Connection, Flags};
use crate::worker::Next;

/// Lists of connections by key. A key may belong to a connection that was removed, or to a later
/// one that reuses the key. Readers of a list check the connection's state and flags.
#[derive(Debug, Default)]
pub(crate) struct WorkLists {
    /// Connections to poll in this round or the next.
    pub(crate) run_queue: Vec<u32>,
    /// New connections of this round.
    pub(crate) arrived: Vec<u32>,
    /// Connections whose turn ended with input left, in the order of their next turns.
    pub(crate) backlog: Vec<u32>,
    /// Connections to write at the end of the round: their queues have new bytes, or their sockets
    /// became writable. Called the dirty list.
    pub(crate) dirty: Vec<u32>,
    /// Connections of a write step that are not written in a batch. The list is empty between steps
    /// and kept for its capacity.
    pub(crate) write_individually: Vec<u32>,
    /// Open connections whose queues have drained. Their keys are reported to the worker state at
    /// the end of the round.
    pub(crate) drained: Vec<u32>,
    /// Verdicts to apply once [`WorkerState::poll`](crate::WorkerState::poll) has returned.
    pub(crate) verdicts: Vec<(u32, Next)>,
}

impl WorkLists {
    /// Adds a connection to the dirty list, unless it is there already. Returns `true` if it was
    /// added.
    #[inline(always)]
    pub(crate) fn mark_dirty(&mut self, key: u32, flags: &mut Flags) -> bool {
        let is_added = !std::mem::replace(&mut flags.dirty, true);
        if is_added {
            self.dirty.push(key);
        }
        is_added
    }

    /// Adds a connection to the dirty list if it has something to write.
    #[inline]
    pub(crate) fn mark_dirty_if_needed<S>(&mut self, key: u32, connection: &mut Connection<S>) {
        if !connection.flags.dirty && connection.needs_write() {
            self.mark_dirty(key, &mut connection.flags);
        }
    }

    /// Adds a connection to the end of the backlog, unless it is there already.
    pub(crate) fn defer(&mut self, key: u32, flags: &mut Flags) {
        if !std::mem::replace(&mut flags.in_backlog, true) {
            self.backlog.push(key);
        }
    }

    /// Frees memory after many connections have closed.
    pub(crate) fn shrink_to(&mut self, connections: usize) {
        let Self { run_queue, backlog, dirty, write_individually, drained, .. } = self;
        for list in [run_queue, backlog, dirty, write_individually, drained] {
            list.shrink_to(connections);
        }
    }

    /// Empties the lists.
    pub(crate) fn clear(&mut self) {
        let Self { run_queue, arrived, backlog, dirty, write_individually, drained, verdicts } = self;
        for list in [run_queue, arrived, backlog, dirty, write_individually, drained] {
            list.clear();
        }
        verdicts.clear();
    }
}
