//! State of a worker's rounds: clock, budgets, buffers, and the lists of connections to handle.
//!
//! Work is counted in *byte cost*: reading and handling one byte of a message costs one. Other work
//! costs as much as the bytes that take the same time; one unit is about a nanosecond. A *turn* is
//! the share of a round's budget that one connection may spend.

mod budget;
mod buffers;
mod clock;
mod deliveries;
mod lists;

use std::time::Instant;

#[cfg(feature = "io-uring")]
use crate::batch_write::{self, Batch};
use crate::config::{Config, Limits};
use crate::deflate::DeflateCodec;
use crate::intake_limit::IntakeLimit;
use crate::table::{ConnectionTable, take_if_dirty};

pub(crate) use budget::{
    COMPRESSED_BYTE_COST, COPIED_BYTES_PER_COST, FRAME_COST, HANDSHAKE_COST, MESSAGE_COST, RoundBudget,
    TLS_STEP_COST, Turn,
};
pub(crate) use buffers::Buffers;
pub(crate) use clock::Clock;
pub(crate) use deliveries::DeliveryBudget;
pub(crate) use lists::WorkLists;

/// State of a worker's rounds.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) clock: Clock,
    /// Budget of this round for client input.
    pub(crate) budget: RoundBudget,
    /// Limit of client input while memory is short.
    pub(crate) intake: IntakeLimit,
    /// Budget of this round for deliveries.
    pub(crate) deliveries: DeliveryBudget,
    pub(crate) lists: WorkLists,
    pub(crate) buffers: Buffers,
    pub(crate) codec: DeflateCodec,
    /// Ring for batched reads and writes, if io_uring is used.
    #[cfg(feature = "io-uring")]
    pub(crate) batch: Option<Batch>,
    /// Bytes received since the last metrics update.
    pub(crate) received: u64,
    /// Turns since the last metrics update that ended with bytes read but not handled.
    pub(crate) deferred: u64,
}

impl Round {
    pub(crate) fn new(config: &Config, limits: &Limits, now: Instant) -> Self {
        Self {
            clock: Clock::new(now),
            budget: RoundBudget::new(limits.round_bytes, limits.round_time, now),
            intake: IntakeLimit::new(config.memory.clone(), config.workers),
            deliveries: DeliveryBudget::default(),
            lists: WorkLists::default(),
            buffers: Buffers::default(),
            codec: DeflateCodec::new(&config.compression),
            #[cfg(feature = "io-uring")]
            batch: None,
            received: 0,
            deferred: 0,
        }
    }

    /// Starts a round: sets the clock and resets the budgets.
    pub(crate) fn begin(&mut self, limits: &Limits, now: Instant) {
        self.clock.set(now);
        self.deliveries = DeliveryBudget::default();
        self.buffers.tls_scratch.handshake_steps = 0;
        self.intake.begin_round(now);
        let max_cost = limits.round_bytes.min(self.intake.remaining());
        self.budget = RoundBudget::new(max_cost, limits.round_time, now);
    }

    /// Deducts the cost of this round from the intake limit.
    pub(crate) fn charge_intake(&mut self) {
        self.intake.spend(self.budget.spent());
    }

    /// Returns `true` if connections are read and written in batches.
    pub(crate) fn is_batching(&self) -> bool {
        #[cfg(feature = "io-uring")]
        return self.batch.is_some();
        #[cfg(not(feature = "io-uring"))]
        false
    }

    /// Handles connections at the start of `dirty` and returns how many. Writes some of them in a
    /// batch, and adds those that the caller must write to `individually`.
    pub(crate) fn begin_writing<S>(
        &mut self,
        table: &mut ConnectionTable<S>,
        dirty: &[u32],
        individually: &mut Vec<u32>,
    ) -> usize {
        #[cfg(feature = "io-uring")]
        if self.batch.is_some() && dirty.len() >= batch_write::MIN_BATCH {
            return self.write_batch(table, dirty, individually);
        }
        for &key in dirty {
            if take_if_dirty(&mut table.slab, key).is_some() {
                individually.push(key);
            }
        }
        dirty.len()
    }

    /// Resets the state that a panic may have left inconsistent: lists, codec and TLS buffer.
    pub(crate) fn reset_after_panic(&mut self, config: &Config) {
        self.lists.clear();
        self.codec = DeflateCodec::new(&config.compression);
        self.buffers.tls_scratch = Default::default();
    }
}
