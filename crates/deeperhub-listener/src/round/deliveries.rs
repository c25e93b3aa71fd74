//! Budget of a worker's round for deliveries.

use super::MESSAGE_COST;

/// Maximum connections that fan-outs mark dirty in one round, about 5 ms of writes. The other
/// receivers get their frames in later rounds, so that a large fan-out does not delay reads and
/// other topics.
const MAX_RECEIVERS_PER_ROUND: usize = 1024;

/// Maximum deliveries (a frame queued for a connection) in one round, however few connections get
/// them.
const MAX_DELIVERIES_PER_ROUND: usize = 16 * MAX_RECEIVERS_PER_ROUND;

/// Budget for the deliveries of one round, in [byte cost](crate::round): eight times the default of
/// [`Limits::round_bytes`](crate::Limits::round_bytes). It limits rounds with long messages, or
/// with messages to compress.
const DELIVERY_COST_PER_ROUND: usize = 32 * 1024 * 1024;

/// Minimum receivers with which a round counts as part of a burst. With fewer, waiting for more
/// messages saves too little.
const MIN_BURST_RECEIVERS: usize = 64;

/// Deliveries that a round may still make.
#[derive(Debug)]
pub(crate) struct DeliveryBudget {
    /// Connections that fan-outs may still mark dirty.
    receivers: usize,
    /// Deliveries left.
    deliveries: usize,
    /// Delivery cost left.
    cost: usize,
}

impl Default for DeliveryBudget {
    fn default() -> Self {
        Self {
            receivers: MAX_RECEIVERS_PER_ROUND,
            deliveries: MAX_DELIVERIES_PER_ROUND,
            cost: DELIVERY_COST_PER_ROUND,
        }
    }
}

impl DeliveryBudget {
    /// Returns how many more connections should get frames in this round.
    pub(crate) fn remaining(&self) -> usize {
        if self.deliveries == 0 || self.cost == 0 { 0 } else { self.receivers }
    }

    /// Charges `count` deliveries of `bytes` in total, with the cost of their compression.
    #[inline(always)]
    pub(crate) fn charge(&mut self, count: usize, bytes: usize, compression_cost: usize) {
        self.deliveries = self.deliveries.saturating_sub(count);
        let cost = count.saturating_mul(MESSAGE_COST).saturating_add(bytes).saturating_add(compression_cost);
        self.cost = self.cost.saturating_sub(cost);
    }

    /// Charges a connection that a delivery marked dirty.
    #[inline(always)]
    pub(crate) fn charge_receiver(&mut self) {
        self.receivers = self.receivers.saturating_sub(1);
    }

    /// Returns `true` if this round was part of a burst: many connections got frames, on average at
    /// least two each.
    pub(crate) fn is_in_burst(&self) -> bool {
        let receivers = MAX_RECEIVERS_PER_ROUND - self.receivers;
        let deliveries = MAX_DELIVERIES_PER_ROUND - self.deliveries;
        receivers >= MIN_BURST_RECEIVERS && deliveries >= 2 * receivers
    }
}
