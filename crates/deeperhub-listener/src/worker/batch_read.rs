//! Batched socket reads: many connections per system call (io_uring).

use std::io;

use deeperhub_uring::RecvOp;

use super::read::LONG_READ_BYTES;
use super::{READ_BUFFER_BYTES, Worker};
use crate::batch_write::MIN_BATCH;
use crate::connections::{Connection, State};
use crate::session::Application;
use crate::transport::Transport;

/// Read buffer of each connection. Not a power of two, so that buffers do not share cache sets.
const READ_SLOT_BYTES: usize = LONG_READ_BYTES + 256;

/// Maximum connections in a batch. More would save little.
const MAX_BATCHED_READS: usize = READ_BUFFER_BYTES / READ_SLOT_BYTES;

type Outcomes = [Option<io::Result<usize>>; MAX_BATCHED_READS];

impl<A: Application> Worker<'_, A> {
    /// Polls the connections in batches, within the round's budget. Returns how many were polled.
    pub(super) fn poll_in_batches(&mut self, keys: &[u32]) -> usize {
        let mut buffers = std::mem::take(&mut self.batch_buffers);
        buffers.resize(MAX_BATCHED_READS * READ_SLOT_BYTES, 0);
        let mut done = 0;
        for keys in keys.chunks(MAX_BATCHED_READS) {
            if self.core.round.is_spent() {
                break;
            }
            done += keys.len();
            let outcomes = self.read_batch(keys, &mut buffers);
            for ((&key, slot), outcome) in
                keys.iter().zip(buffers.chunks_exact_mut(READ_SLOT_BYTES)).zip(outcomes)
            {
                match outcome {
                    None => self.poll_connection(key),
                    Some(outcome) => self.after_batched_read(key, slot, outcome),
                }
            }
        }
        self.batch_buffers = buffers;
        self.core.disable_broken_batching();
        done
    }

    /// Reads from the connections whose input is likely short, each into its own buffer.
    fn read_batch(&mut self, keys: &[u32], buffers: &mut [u8]) -> Outcomes {
        let mut outcomes = [const { None }; MAX_BATCHED_READS];
        let core = &mut *self.core;
        let Some(batch) = &mut core.batch else { return outcomes };
        let connections = &core.connections;
        let mut chosen = [false; MAX_BATCHED_READS];
        for (nth, &key) in keys.iter().enumerate() {
            // A key occurs twice if its socket is both readable and writable.
            chosen[nth] = !keys[..nth].contains(&key)
                && connections.get(key as usize).is_some_and(Connection::may_read_in_batch);
        }
        if chosen.iter().filter(|&&chosen| chosen).count() < MIN_BATCH {
            return outcomes;
        }
        let of_chosen = keys.iter().zip(buffers.chunks_exact_mut(READ_SLOT_BYTES)).zip(chosen);
        let ops = of_chosen.filter_map(|((&key, buffer), chosen)| {
            let connection = connections.get(key as usize).filter(|_| chosen)?;
            Some(RecvOp { from: connection.transport.descriptor(), buffer })
        });
        let results = batch.batcher.recv(ops);
        let admission = outcomes.iter_mut().zip(chosen).filter_map(|(place, chosen)| chosen.then_some(place));
        for (place, result) in admission.zip(results) {
            *place = Some(result);
        }
        outcomes
    }

    /// Continues after a batched read, like [`read`](Self::read) after its own.
    fn after_batched_read(&mut self, key: u32, slot: &mut [u8], outcome: io::Result<usize>) {
        let mut turn = self.core.round.turn();
        let core = &mut *self.core;
        let Some(connection) = core.connections.get_mut(key as usize) else { return };
        match outcome {
            Ok(0) => return self.end_of_stream(key),
            Ok(read) => {
                core.received += read as u64;
                let is_drained = read < slot.len() && connection.transport.clear_readiness();
                connection.flags.reads_long = !is_drained;
                self.process_input(key, &mut slot[..read], &mut turn);
                if is_drained && !self.has_unread(key) && !self.arm(key) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if connection.transport.clear_readiness() && !self.arm(key) {
                    return self.mark_silent(key);
                }
            }
            // The error shows again in the next read.
            Err(_) => {}
        }
        self.read_in_turn(key, &mut turn);
    }
}

impl<S> Connection<S> {
    fn may_read_in_batch(&self) -> bool {
        let flags = &self.flags;
        matches!((&self.state, &self.transport), (State::Open(_), Transport::Tcp(_)))
            && !(flags.in_backlog || flags.has_unread)
            && !(flags.reads_long || flags.write_blocked || flags.paused || flags.over_queue_limit)
    }
}
