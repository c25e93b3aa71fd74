//! The work that a worker's round may do for what clients have sent.

use std::time::{Duration, Instant};

/// What a message, a control frame or a delivery costs beside its bytes. An echo of 128 bytes takes about 400 ns of
/// user time, and a byte that is unmasked, scanned or inflated about one.
pub(crate) const MESSAGE_COST: usize = 512;

/// What a frame of a message in parts costs beside its bytes.
pub(crate) const FRAME_COST: usize = 64;

/// What a step of a handshake costs: parsing a head, and asking the application.
pub(crate) const HANDSHAKE_COST: usize = 16 * 1024;

/// What a step of a TLS handshake costs: a signature with a key of P-256 takes about as long as this many bytes, one with
/// RSA several times as long, which the clock sees.
pub(crate) const TLS_STEP_COST: usize = 128 * 1024;

/// What a byte costs that is compressed, in bytes that are only read.
pub(crate) const COMPRESSED_BYTE_COST: usize = 8;

/// Bytes that are only copied, and cost as much as one that is read.
pub(crate) const COPIED_BYTES: usize = 8;

/// A connection's part of a round. With fewer, a few connections that send all they may would take all of it; with
/// more, a connection would have to come back for each long message.
const TURNS_PER_ROUND: usize = 16;

/// Cost after which the clock is read again: often enough to keep to milliseconds, too seldom to be noticed.
const CLOCK_COST: usize = 16 * 1024;

/// The part of a round that connections may have that came back for the rest of what they sent. Connections that are
/// newly ready go first, up to the remainder, so that nobody waits for those that send without end.
const BACKLOG_PART: usize = 4;

/// What is left of a round, in the cost of bytes.
///
/// All that a client can cause within a round is spent here: the bytes that come, those that come out of decompression,
/// those of replies, a fixed cost for each message and frame. The time of the round is looked at besides, for what costs
/// more than it should. When either is used up, the connections that are left wait for the next round; what has to go on
/// whatever clients do (arrivals, deadlines, deliveries, writes, the drain) has its turn in between.
#[derive(Debug)]
pub(crate) struct RoundBudget {
    left: usize,
    turn: usize,
    /// Kept for the connections that come back.
    reserve: usize,
    until: Instant,
    time: Duration,
    since_clock: usize,
    /// Cost of the round so far.
    spent: usize,
}

/// What is left of one connection's turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    left: usize,
}

impl RoundBudget {
    /// A round of `bytes` and `time` that begins `now`.
    pub(crate) fn new(bytes: usize, time: Duration, now: Instant) -> Self {
        let bytes = bytes.max(1);
        Self {
            left: bytes,
            turn: (bytes / TURNS_PER_ROUND).max(1),
            reserve: 0,
            // A time too long for the clock is no limit: an hour is as good.
            until: now.checked_add(time).unwrap_or(now + Duration::from_secs(3600)),
            time,
            since_clock: 0,
            spent: 0,
        }
    }

    /// Keeps a part of the round for connections that come back.
    pub(crate) fn reserve(&mut self) {
        self.reserve = self.left / BACKLOG_PART;
    }

    /// Gives up what was kept: it is their turn.
    pub(crate) fn release(&mut self) {
        self.reserve = 0;
    }

    /// Whether no further connection may have its turn.
    pub(crate) fn is_spent(&self) -> bool {
        self.left <= self.reserve
    }

    /// The turn of one connection.
    pub(crate) fn turn(&self) -> Turn {
        Turn { left: self.turn.min(self.left.saturating_sub(self.reserve)) }
    }

    /// Takes off what was done for a connection in its turn.
    #[inline]
    pub(crate) fn spend(&mut self, turn: &mut Turn, cost: usize) {
        turn.left = turn.left.saturating_sub(cost);
        self.left = self.left.saturating_sub(cost);
        self.spent = self.spent.saturating_add(cost);
        self.since_clock += cost;
        if self.since_clock >= CLOCK_COST {
            self.look_at_clock(turn);
        }
    }

    #[cold]
    fn look_at_clock(&mut self, turn: &mut Turn) {
        self.since_clock = 0;
        if Instant::now() < self.until {
            return;
        }
        turn.left = 0;
        if self.reserve == 0 {
            self.left = 0;
        } else {
            // Connections that come back have a part of the time as well.
            self.left = self.left.min(self.reserve);
            self.until = self.until.checked_add(self.time / BACKLOG_PART as u32).unwrap_or(self.until);
        }
    }

    /// Whether a part is kept for connections that come back.
    pub(crate) fn has_reserve(&self) -> bool {
        self.reserve > 0
    }

    /// Cost of all that was done.
    pub(crate) fn spent(&self) -> usize {
        self.spent
    }
}

impl Turn {
    /// Whether the rest of what the connection has sent waits for its next turn.
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
