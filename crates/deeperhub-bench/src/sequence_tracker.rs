//! What one receiver has got of one stream: gaps, duplicates, order.

/// How many gaps a tracker remembers. A message that comes late into a gap that was forgotten counts as a duplicate,
/// and stays lost.
const MAX_GAPS: usize = 4096;

/// The messages of one stream that one receiver has got.
#[derive(Debug, Default)]
pub(crate) struct SequenceTracker {
    /// One more than the highest number seen.
    next: u64,
    /// What does not happen on a connection that works; kept apart to keep the usual tracker small.
    irregular: Option<Box<Irregularities>>,
}

#[derive(Debug, Default)]
struct Irregularities {
    /// Ranges of numbers below `next` that have not come, ascending: first and one past the last.
    gaps: Vec<(u64, u64)>,
    /// Numbers in gaps that were forgotten.
    forgotten: u64,
    duplicates: u64,
    late: u64,
}

/// What a message is to its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It came after all that were sent before it and came at all.
    InOrder,
    /// It came after one that was sent later.
    Late,
    /// It came before.
    Duplicate,
}

/// The sum of a tracker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SequenceSummary {
    /// Messages of the stream that came, each counted once.
    pub(crate) received: u64,
    /// Messages that came again.
    pub(crate) duplicates: u64,
    /// Messages that came after a later one.
    pub(crate) late: u64,
}

impl SequenceTracker {
    /// Enters a message by its number.
    #[inline]
    pub(crate) fn record(&mut self, sequence: u64) -> Arrival {
        if sequence == self.next {
            self.next += 1;
            return Arrival::InOrder;
        }
        self.record_unexpected(sequence)
    }

    #[cold]
    fn record_unexpected(&mut self, sequence: u64) -> Arrival {
        let irregular = self.irregular.get_or_insert_default();
        if sequence > self.next {
            if irregular.gaps.len() == MAX_GAPS {
                let (from, to) = irregular.gaps.remove(0);
                irregular.forgotten += to - from;
            }
            irregular.gaps.push((self.next, sequence));
            self.next = sequence + 1;
            return Arrival::InOrder;
        }
        let at = irregular.gaps.partition_point(|(_, to)| *to <= sequence);
        let Some(gap) = irregular.gaps.get_mut(at).filter(|(from, _)| *from <= sequence) else {
            irregular.duplicates += 1;
            return Arrival::Duplicate;
        };
        let (from, to) = *gap;
        match (from == sequence, sequence + 1 == to) {
            (true, true) => drop(irregular.gaps.remove(at)),
            (true, false) => gap.0 = sequence + 1,
            (false, true) => gap.1 = sequence,
            (false, false) => {
                gap.1 = sequence;
                irregular.gaps.insert(at + 1, (sequence + 1, to));
            }
        }
        irregular.late += 1;
        Arrival::Late
    }

    /// What came so far.
    pub(crate) fn summary(&self) -> SequenceSummary {
        let Some(irregular) = &self.irregular else {
            return SequenceSummary { received: self.next, ..SequenceSummary::default() };
        };
        let missing: u64 = irregular.gaps.iter().map(|(from, to)| to - from).sum();
        SequenceSummary {
            received: self.next - missing - irregular.forgotten,
            duplicates: irregular.duplicates,
            late: irregular.late,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_comes_in_order_needs_no_more_than_a_number() {
        let mut tracker = SequenceTracker::default();
        assert!((0..1000).all(|sequence| tracker.record(sequence) == Arrival::InOrder));
        assert!(tracker.irregular.is_none());
        assert_eq!(tracker.summary(), SequenceSummary { received: 1000, duplicates: 0, late: 0 });
    }

    #[test]
    fn more_gaps_than_are_remembered_stay_lost() {
        let mut tracker = SequenceTracker::default();
        let gaps = MAX_GAPS as u64 + 10;
        for sequence in 0..gaps {
            tracker.record(2 * sequence + 1);
        }
        assert_eq!(tracker.summary().received, gaps);
        assert_eq!(tracker.record(0), Arrival::Duplicate, "forgotten");
        assert_eq!(tracker.record(2 * gaps - 2), Arrival::Late);
        assert_eq!(tracker.summary(), SequenceSummary { received: gaps + 1, duplicates: 1, late: 1 });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn it_agrees_with_a_set_of_all_numbers(sequences in proptest::collection::vec(0..60_u64, 0..200)) {
            let mut tracker = SequenceTracker::default();
            let (mut seen, mut highest, mut expected) = (HashSet::new(), None, SequenceSummary::default());
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
                prop_assert_eq!(tracker.record(sequence), arrival, "{}", sequence);
                expected.received = seen.len() as u64;
                prop_assert_eq!(tracker.summary(), expected);
            }
        }
    }
}
