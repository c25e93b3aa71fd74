//! What one receiver has got of one stream: gaps, duplicates, order.

/// How many gaps a ledger remembers. A message that comes late into a gap that was forgotten counts as a duplicate,
/// and stays lost.
const MAX_GAPS: usize = 4096;

/// The messages of one stream that one receiver has got.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// One more than the highest number seen.
    next: u64,
    /// What does not happen on a connection that works; kept apart to keep the usual ledger small.
    odd: Option<Box<Odd>>,
}

#[derive(Debug, Default)]
struct Odd {
    /// Ranges of numbers below `next` that have not come, ascending: first and one past the last.
    gaps: Vec<(u64, u64)>,
    /// Numbers in gaps that were forgotten.
    forgotten: u64,
    duplicates: u64,
    late: u64,
}

/// What a message is to its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It came after all that were sent before it and came at all.
    InOrder,
    /// It came after one that was sent later.
    Late,
    /// It came before.
    Duplicate,
}

/// The sum of a ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Balance {
    /// Messages of the stream that came, each counted once.
    pub(super) received: u64,
    /// Messages that came again.
    pub(super) duplicates: u64,
    /// Messages that came after a later one.
    pub(super) late: u64,
}

impl Ledger {
    /// Enters a message by its number.
    #[inline]
    pub(super) fn enter(&mut self, sequence: u64) -> Arrival {
        if sequence == self.next {
            self.next += 1;
            return Arrival::InOrder;
        }
        self.enter_odd(sequence)
    }

    #[cold]
    fn enter_odd(&mut self, sequence: u64) -> Arrival {
        let odd = self.odd.get_or_insert_default();
        if sequence > self.next {
            if odd.gaps.len() == MAX_GAPS {
                let (from, to) = odd.gaps.remove(0);
                odd.forgotten += to - from;
            }
            odd.gaps.push((self.next, sequence));
            self.next = sequence + 1;
            return Arrival::InOrder;
        }
        let at = odd.gaps.partition_point(|(_, to)| *to <= sequence);
        let Some(gap) = odd.gaps.get_mut(at).filter(|(from, _)| *from <= sequence) else {
            odd.duplicates += 1;
            return Arrival::Duplicate;
        };
        let (from, to) = *gap;
        match (from == sequence, sequence + 1 == to) {
            (true, true) => drop(odd.gaps.remove(at)),
            (true, false) => gap.0 = sequence + 1,
            (false, true) => gap.1 = sequence,
            (false, false) => {
                gap.1 = sequence;
                odd.gaps.insert(at + 1, (sequence + 1, to));
            }
        }
        odd.late += 1;
        Arrival::Late
    }

    /// What came so far.
    pub(super) fn balance(&self) -> Balance {
        let Some(odd) = &self.odd else { return Balance { received: self.next, ..Balance::default() } };
        let missing: u64 = odd.gaps.iter().map(|(from, to)| to - from).sum();
        Balance { received: self.next - missing - odd.forgotten, duplicates: odd.duplicates, late: odd.late }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_comes_in_order_needs_no_more_than_a_number() {
        let mut ledger = Ledger::default();
        assert!((0..1000).all(|sequence| ledger.enter(sequence) == Arrival::InOrder));
        assert!(ledger.odd.is_none());
        assert_eq!(ledger.balance(), Balance { received: 1000, duplicates: 0, late: 0 });
    }

    #[test]
    fn more_gaps_than_are_remembered_stay_lost() {
        let mut ledger = Ledger::default();
        let gaps = MAX_GAPS as u64 + 10;
        for sequence in 0..gaps {
            ledger.enter(2 * sequence + 1);
        }
        assert_eq!(ledger.balance().received, gaps);
        assert_eq!(ledger.enter(0), Arrival::Duplicate, "forgotten");
        assert_eq!(ledger.enter(2 * gaps - 2), Arrival::Late);
        assert_eq!(ledger.balance(), Balance { received: gaps + 1, duplicates: 1, late: 1 });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn it_agrees_with_a_set_of_all_numbers(sequences in proptest::collection::vec(0..60_u64, 0..200)) {
            let mut ledger = Ledger::default();
            let (mut seen, mut highest, mut expected) = (HashSet::new(), None, Balance::default());
            for sequence in sequences {
                let arrival = if !seen.insert(sequence) {
                    expected.duplicates += 1;
                    Arrival::Duplicate
                } else if highest.is_some_and(|highest| sequence < highest) {
                    expected.late += 1;
                    Arrival::Late
                } else {
                    Arrival::InOrder
                };
                highest = highest.max(Some(sequence));
                prop_assert_eq!(ledger.enter(sequence), arrival, "{}", sequence);
                expected.received = seen.len() as u64;
                prop_assert_eq!(ledger.balance(), expected);
            }
        }
    }
}
