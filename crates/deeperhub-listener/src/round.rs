//! Work budget of a worker's round for client input.

use std::time::{Duration, Instant};

/// Fixed cost of a message, a control frame or a delivery, on top of its bytes. An echo of 128
/// bytes takes about 400 ns of user time. Unmasking, scanning or inflating a byte takes about 1 ns.
pub(crate) const MESSAGE_COST: usize = 512;

/// Fixed cost of a frame of a fragmented message, on top of its bytes.
pub(crate) const FRAME_COST: usize = 64;

/// Cost of a handshake step: parsing a head, and asking the application.
pub(crate) const HANDSHAKE_COST: usize = 16 * 1024;

/// Cost of a TLS handshake step: about that of a P-256 signature. An RSA signature takes several
/// times as long, which the clock catches.
pub(crate) const TLS_STEP_COST: usize = 128 * 1024;

/// Cost of compressing a byte, relative to reading one.
pub(crate) const COMPRESSED_BYTE_COST: usize = 8;

/// Number of bytes whose copying costs as much as reading one.
pub(crate) const COPIED_BYTES: usize = 8;

/// Full turns in a round. With fewer, a few connections that send at full speed would take all of
/// it. With more, each long message would need several turns.
const TURNS_PER_ROUND: usize = 16;

/// Cost after which the clock is read again. Often enough to keep to milliseconds, too seldom to
/// matter.
const CLOCK_COST: usize = 16 * 1024;

/// Divisor of a round for the part reserved for the backlog. Newly ready connections go first, up
/// to the remainder, so that they never wait for peers that send without end.
const BACKLOG_PART: usize = 4;

/// Work left in a round, in byte cost.
///
/// Everything that a client can cause within a round is charged here: bytes received, decompressed
/// and replied, and a fixed cost per message and frame. The clock bounds work that costs more than
/// estimated. When either limit is reached, the remaining connections wait for the next round.
/// Arrivals, deadlines, deliveries, writes and the drain run in between, whatever clients do.
#[derive(Debug)]
pub(crate) struct RoundBudget {
    left: usize,
    turn: usize,
    /// Part reserved for the backlog.
    reserve: usize,
    until: Instant,
    time: Duration,
    since_clock: usize,
    /// Cost of the round so far.
    spent: usize,
}

/// Work left in one connection's turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    left: usize,
}

impl RoundBudget {
    /// Creates the budget of a round of `bytes` and `time` that begins `now`.
    pub(crate) fn new(bytes: usize, time: Duration, now: Instant) -> Self {
        let bytes = bytes.max(1);
        Self {
            left: bytes,
            turn: (bytes / TURNS_PER_ROUND).max(1),
            reserve: 0,
            // A time beyond the clock's range is no limit; an hour is as good.
            until: now.checked_add(time).unwrap_or(now + Duration::from_secs(3600)),
            time,
            since_clock: 0,
            spent: 0,
        }
    }

    /// Reserves a part of the round for the backlog.
    pub(crate) fn reserve(&mut self) {
        self.reserve = self.left / BACKLOG_PART;
    }

    /// Releases the reserved part when the backlog's turn comes.
    pub(crate) fn release(&mut self) {
        self.reserve = 0;
    }

    /// Returns `true` if no further connection may have a turn.
    pub(crate) fn is_spent(&self) -> bool {
        self.left <= self.reserve
    }

    /// Returns the turn of one connection.
    pub(crate) fn turn(&self) -> Turn {
        Turn { left: self.turn.min(self.left.saturating_sub(self.reserve)) }
    }

    /// Charges work done for a connection in its turn.
    #[inline]
    pub(crate) fn spend(&mut self, turn: &mut Turn, cost: usize) {
        turn.left = turn.left.saturating_sub(cost);
        self.left = self.left.saturating_sub(cost);
        self.spent = self.spent.saturating_add(cost);
        self.since_clock += cost;
        if self.since_clock >= CLOCK_COST {
            self.check_clock(turn);
        }
    }

    #[cold]
    fn check_clock(&mut self, turn: &mut Turn) {
        self.since_clock = 0;
        if Instant::now() < self.until {
            return;
        }
        turn.left = 0;
        if self.reserve == 0 {
            self.left = 0;
        } else {
            // The backlog gets a part of the time as well.
            self.left = self.left.min(self.reserve);
            self.until = self.until.checked_add(self.time / BACKLOG_PART as u32).unwrap_or(self.until);
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
    /// Returns `true` if the rest of the connection's input waits for its next turn.
    #[inline]
    pub(crate) fn is_over(self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_turn_is_a_share_of_the_round_and_the_round_ends_with_its_bytes() {
        let mut round = RoundBudget::new(1600, HOUR, Instant::now());
        let mut turns = 0;
        while !round.is_spent() {
            let mut turn = round.turn();
            while !turn.is_over() {
                round.spend(&mut turn, 10);
            }
            turns += 1;
        }
        assert_eq!((turns, round.spent()), (TURNS_PER_ROUND, 1600));
    }

    #[test]
    fn a_part_is_kept_for_those_that_come_back() {
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
    fn the_clock_ends_a_round_too() {
        let mut round = RoundBudget::new(usize::MAX, Duration::ZERO, Instant::now());
        let mut turn = round.turn();
        round.spend(&mut turn, CLOCK_COST - 1);
        assert!(!turn.is_over(), "the clock is not read for so little");
        round.spend(&mut turn, 1);
        assert!(turn.is_over() && round.is_spent());
    }

    #[test]
    fn the_clock_leaves_a_part_for_those_that_come_back() {
        let mut round = RoundBudget::new(64 * CLOCK_COST, Duration::ZERO, Instant::now());
        round.reserve();
        let mut turn = round.turn();
        round.spend(&mut turn, CLOCK_COST);
        assert!(turn.is_over() && round.is_spent());
        round.release();
        assert!(!round.is_spent() && !round.turn().is_over());
        let mut turn = round.turn();
        round.spend(&mut turn, CLOCK_COST);
        assert!(round.is_spent());
    }

    #[test]
    fn the_smallest_round_and_the_longest_time_still_give_everyone_a_turn() {
        let mut round = RoundBudget::new(0, Duration::MAX, Instant::now());
        assert!(!round.turn().is_over());
        let mut turn = round.turn();
        round.spend(&mut turn, usize::MAX);
        assert!(round.is_spent());
    }
}
