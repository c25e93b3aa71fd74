//! Budget of a worker's round for client input, in [byte cost](crate::round).

use std::time::{Duration, Instant};

/// Fixed cost of a message, a control frame or a delivery, on top of its bytes.
pub(crate) const MESSAGE_COST: usize = 512;

/// Fixed cost of a frame of a fragmented message, on top of its bytes.
pub(crate) const FRAME_COST: usize = 64;

/// Cost of a handshake step: parsing a head, or polling the application's decision.
pub(crate) const HANDSHAKE_COST: usize = 16 * 1024;

/// Cost of a TLS handshake step: about that of a P-256 signature. An RSA signature takes several
/// times as long; the time limit of the round covers it.
pub(crate) const TLS_STEP_COST: usize = 128 * 1024;

/// Cost of compressing one byte.
pub(crate) const COMPRESSED_BYTE_COST: usize = 8;

/// Number of bytes that can be copied at the cost of one.
pub(crate) const COPIED_BYTES_PER_COST: usize = 8;

/// Divisor of a round's budget for one turn. With a smaller divisor, a few connections that send at
/// full speed would spend the whole round. With a larger one, a long message would need several
/// turns.
const FULL_TURNS_PER_ROUND: usize = 16;

/// Cost after which the clock is read again. The time limit is thus kept to within milliseconds,
/// and the clock reads cost little.
const CLOCK_CHECK_COST: usize = 16 * 1024;

/// Divisor of a round's budget for the part that is reserved for the backlog. Newly ready
/// connections get the rest first, so that they never wait for clients that send without end.
const BACKLOG_DIVISOR: usize = 4;

/// Work that a round may still do for client input, in byte cost.
///
/// All work that clients cause within a round is charged here: bytes received, decompressed and
/// replied, and a fixed cost per message and frame. A time limit bounds work that costs more than
/// estimated. When either limit is reached, the remaining connections wait for the next round. New
/// connections, deadlines, deliveries, writes and the drain are thus never delayed for long.
#[derive(Debug)]
pub(crate) struct RoundBudget {
    remaining: usize,
    /// Budget of one turn.
    per_turn: usize,
    /// Part of `remaining` that is reserved for the backlog.
    reserve: usize,
    /// Time at which the round stops handling input.
    deadline: Instant,
    /// Time limit of the round.
    max_time: Duration,
    /// Cost since the clock was last read.
    cost_since_clock_check: usize,
    /// Cost of the round so far.
    spent: usize,
}

/// Work that one connection may still cause in its turn, in byte cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    remaining: usize,
}

impl RoundBudget {
    /// Creates the budget of a round that begins `now`, with limits of cost and time.
    pub(crate) fn new(max_cost: usize, max_time: Duration, now: Instant) -> Self {
        let max_cost = max_cost.max(1);
        Self {
            remaining: max_cost,
            per_turn: (max_cost / FULL_TURNS_PER_ROUND).max(1),
            reserve: 0,
            // A limit beyond the clock's range becomes an hour.
            deadline: now.checked_add(max_time).unwrap_or(now + Duration::from_secs(3600)),
            max_time,
            cost_since_clock_check: 0,
            spent: 0,
        }
    }

    /// Reserves a part of the round for the backlog.
    pub(crate) fn reserve(&mut self) {
        self.reserve = self.remaining / BACKLOG_DIVISOR;
    }

    /// Releases the reserved part, before the backlog gets its turns.
    pub(crate) fn release(&mut self) {
        self.reserve = 0;
    }

    /// Returns `true` if nothing is left but the reserved part, so that no connection gets a turn.
    pub(crate) fn is_spent(&self) -> bool {
        self.remaining <= self.reserve
    }

    /// Returns a new turn for one connection.
    pub(crate) fn turn(&self) -> Turn {
        Turn { remaining: self.per_turn.min(self.remaining.saturating_sub(self.reserve)) }
    }

    /// Charges work for a connection to the round and to the connection's turn.
    #[inline]
    pub(crate) fn spend(&mut self, turn: &mut Turn, cost: usize) {
        turn.remaining = turn.remaining.saturating_sub(cost);
        self.remaining = self.remaining.saturating_sub(cost);
        self.spent = self.spent.saturating_add(cost);
        self.cost_since_clock_check = self.cost_since_clock_check.saturating_add(cost);
        if self.cost_since_clock_check >= CLOCK_CHECK_COST {
            self.check_clock(turn);
        }
    }

    /// Ends the turn and the round if the time limit has passed.
    #[cold]
    fn check_clock(&mut self, turn: &mut Turn) {
        self.cost_since_clock_check = 0;
        if Instant::now() < self.deadline {
            return;
        }
        turn.remaining = 0;
        if self.reserve == 0 {
            self.remaining = 0;
        } else {
            // The backlog gets its part of the time, too.
            self.remaining = self.remaining.min(self.reserve);
            let backlog_time = self.max_time / BACKLOG_DIVISOR as u32;
            self.deadline = self.deadline.checked_add(backlog_time).unwrap_or(self.deadline);
        }
    }

    /// Returns `true` if a part is reserved for the backlog.
    pub(crate) fn has_reserve(&self) -> bool {
        self.reserve > 0
    }

    /// Returns the cost of the round so far.
    pub(crate) fn spent(&self) -> usize {
        self.spent
    }
}

impl Turn {
    /// Returns `true` if the turn's budget is spent. The rest of the connection's input then waits
    /// for its next turn.
    #[inline]
    pub(crate) fn is_over(self) -> bool {
        self.remaining == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_round_has_sixteen_full_turns() {
        let mut round = RoundBudget::new(1600, HOUR, Instant::now());
        let mut turns = 0;
        while !round.is_spent() {
            let mut turn = round.turn();
            while !turn.is_over() {
                round.spend(&mut turn, 10);
            }
            turns += 1;
        }
        assert_eq!((turns, round.spent()), (FULL_TURNS_PER_ROUND, 1600));
    }

    #[test]
    fn a_quarter_of_the_cost_is_reserved_for_the_backlog() {
        let mut round = RoundBudget::new(1600, HOUR, Instant::now());
        round.reserve();
        while !round.is_spent() {
            let mut turn = round.turn();
            round.spend(&mut turn, 100);
        }
        assert_eq!(round.spent(), 1200);
        round.release();
        assert!(!round.is_spent());
        assert!(!round.turn().is_over());
    }

    #[test]
    fn a_round_ends_at_its_time_limit() {
        let mut round = RoundBudget::new(usize::MAX, Duration::ZERO, Instant::now());
        let mut turn = round.turn();
        round.spend(&mut turn, CLOCK_CHECK_COST - 1);
        assert!(!turn.is_over(), "the clock was not read yet");
        round.spend(&mut turn, 1);
        assert!(turn.is_over() && round.is_spent());
    }

    #[test]
    fn the_backlog_gets_its_reserve_after_the_time_limit() {
        let mut round = RoundBudget::new(64 * CLOCK_CHECK_COST, Duration::ZERO, Instant::now());
        round.reserve();
        let mut turn = round.turn();
        round.spend(&mut turn, CLOCK_CHECK_COST);
        assert!(turn.is_over() && round.is_spent());
        round.release();
        assert!(!round.is_spent() && !round.turn().is_over());
        let mut turn = round.turn();
        round.spend(&mut turn, CLOCK_CHECK_COST);
        assert!(round.is_spent());
    }

    #[test]
    fn a_round_with_extreme_limits_still_gives_a_turn() {
        let mut round = RoundBudget::new(0, Duration::MAX, Instant::now());
        assert!(!round.turn().is_over());
        let mut turn = round.turn();
        round.spend(&mut turn, usize::MAX);
        round.spend(&mut turn, usize::MAX);
        assert!(round.is_spent());
    }
}
