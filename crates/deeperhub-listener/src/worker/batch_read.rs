//! Batched socket reads: many connections per system call (io_uring).

use std::io;

use deeperhub_uring::RecvOp;

use super::read::{self, LONG_READ_BYTES, Received};
use super::{READ_BUFFER_BYTES, Worker};
use crate::batch_write::MIN_BATCH;
use crate::connection::{Connection, State};
use crate::session::Application;
use crate::transport::Transport;

/// Length of each connection's buffer in a batch. It is not a power of two, so that the buffers do
/// not share cache sets.
const SLOT_BYTES: usize = LONG_READ_BYTES + 256;

/// Maximum connections in a batch. Larger batches would save few further system calls.
const MAX_BATCHED_READS: usize = READ_BUFFER_BYTES / SLOT_BYTES;

/// Result of each connection's batched read. It is `None` for a connection that was not read in the
/// batch.
type ReadResults = [Option<io::Result<usize>>; MAX_BATCHED_READS];

impl<A: Application> Worker<'_, A> {
    /// Polls connections in batches until the round's budget is spent. Returns how many were
    /// polled.
    pub(super) fn poll_in_batches(&mut self, keys: &[u32]) -> usize {
        let mut buffers = std::mem::take(&mut self.batch_buffers);
        buffers.resize(MAX_BATCHED_READS * SLOT_BYTES, 0);
        let mut polled = 0;
        for keys in keys.chunks(MAX_BATCHED_READS) {
            if self.ctx.round.budget.is_spent() {
                break;
            }
            polled += keys.len();
            let results = self.read_batch(keys, &mut buffers);
            for ((&key, slot), result) in keys.iter().zip(buffers.chunks_exact_mut(SLOT_BYTES)).zip(results) {
                match result {
                    None => self.poll_connection(key),
                    Some(result) => self.after_batched_read(key, slot, result),
                }
            }
        }
        self.batch_buffers = buffers;
        self.ctx.round.disable_broken_batching();
        polled
    }

    /// Reads from the connections whose input is likely short, each into its own buffer.
    fn read_batch(&mut self, keys: &[u32], buffers: &mut [u8]) -> ReadResults {
        let mut results = [const { None }; MAX_BATCHED_READS];
        let Some(batch) = &mut self.ctx.round.batch else { return results };
        let connections = &self.table.slab;
        let mut chosen = [false; MAX_BATCHED_READS];
        for (nth, &key) in keys.iter().enumerate() {
            // A key occurs twice if its socket is both readable and writable.
            chosen[nth] = !keys[..nth].contains(&key)
                && connections.get(key as usize).is_some_and(Connection::may_read_in_batch);
        }
        if chosen.iter().filter(|&&chosen| chosen).count() < MIN_BATCH {
            return results;
        }
        let slots = keys.iter().zip(buffers.chunks_exact_mut(SLOT_BYTES)).zip(chosen);
        let ops = slots.filter_map(|((&key, buffer), chosen)| {
            let connection = connections.get(key as usize).filter(|_| chosen)?;
            Some(RecvOp { from: connection.transport.descriptor(), buffer })
        });
        // The batcher returns one result per operation, in order.
        let received = batch.batcher.recv(ops);
        let chosen_results =
            results.iter_mut().zip(chosen).filter_map(|(result, chosen)| chosen.then_some(result));
        for (chosen_result, result) in chosen_results.zip(received) {
            *chosen_result = Some(result);
        }
        results
    }

    /// Handles the result of a connection's batched read, then continues its turn with single
    /// reads.
    fn after_batched_read(&mut self, key: u32, slot: &mut [u8], result: io::Result<usize>) {
        let mut turn = self.ctx.round.budget.turn();
        let Some(connection) = self.table.get_mut(key) else { return };
        match read::after_batched_read(connection, slot.len(), result, &mut self.ctx) {
            Received::Input { len, is_drained } => {
                self.handle_input(key, &mut slot[..len], &mut turn);
                if is_drained && self.is_waiting_for_input(key) {
                    return;
                }
            }
            Received::Again => {}
            Received::Nothing(next) => return self.apply(key, next),
        }
        self.continue_turn(key, &mut turn);
    }
}

impl<S> Connection<S> {
    /// Returns `true` if the connection can be read in a batch and its input is likely short.
    fn may_read_in_batch(&self) -> bool {
        let flags = &self.flags;
        matches!((&self.state, &self.transport), (State::Open(_), Transport::Tcp(_)))
            && flags.holds.is_empty()
            && !(flags.in_backlog || flags.has_unread)
            && !(flags.reads_long || flags.write_blocked || flags.over_queue_limit)
    }
}
