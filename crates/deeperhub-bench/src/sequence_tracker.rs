//! Tracks the sequence numbers of one stream at one receiver: gaps, duplicates, order.

/// Maximum number of gaps that a tracker stores. Limits memory use. The oldest gap is discarded for
/// a new one; a message that would fill a discarded gap counts as a duplicate, and as lost.
const MAX_GAPS: usize = 4096;

/// Tracks the messages of one stream that arrived at one receiver.
#[derive(Debug, Default)]
pub(crate) struct SequenceTracker {
    /// Highest sequence number so far, plus one.
    next: u64,
    /// `None` until a message arrives out of sequence. Boxed, so that trackers are small.
    irregular: Option<Box<Irregularities>>,
}

/// Gaps, duplicates and late messages.
#[derive(Debug, Default)]
struct Irregularities {
    /// Ascending ranges below `next` that have not arrived: first number and one past the last.
    gaps: Vec<(u64, u64)>,
    /// Missing numbers in discarded gaps.
    discarded: u64,
    duplicates: u64,
    late: u64,
}

/// Arrival of a message, compared with the messages of its stream that arrived before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The message has the highest sequence number so far.
    InOrder,
    /// The message arrived after one with a higher sequence number.
    Late,
    /// The same message has arrived before.
    Duplicate,
}

/// The totals of a tracker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SequenceSummary {
    /// Messages that arrived, without duplicates.
    pub(crate) received: u64,
    /// Messages that arrived again.
    pub(crate) duplicates: u64,
    /// Messages that arrived after a later one.
    pub(crate) late: u64,
}

impl SequenceTracker {
    /// Returns the highest sequence number so far, plus one.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Records a message by its sequence number.
    #[inline]
    pub(crate) fn record(&mut self, sequence: u64) -> Arrival {
        if sequence == self.next {
            self.next += 1;
            return Arrival::InOrder;
        }
        self.record_unexpected(sequence)
    }

    /// Records a message that is not the next one.
    #[cold]
    fn record_unexpected(&mut self, sequence: u64) -> Arrival {
        let irregular = self.irregular.get_or_insert_default();
        if sequence > self.next {
            if irregular.gaps.len() == MAX_GAPS {
                let (from, to) = irregular.gaps.remove(0);
                irregular.discarded += to - from;
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

    /// Returns the totals so far.
    pub(crate) fn summary(&self) -> SequenceSummary {
        let Some(irregular) = &self.irregular else {
            return SequenceSummary { received: self.next, ..SequenceSummary::default() };
        };
        let missing: u64 = irregular.gaps.iter().map(|(from, to)| to - from).sum();
        SequenceSummary {
            received: self.next - missing - irregular.discarded,
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
    fn a_stream_in_order_allocates_nothing() {
        let mut tracker = SequenceTracker::default();
        assert!((0..1000).all(|sequence| tracker.record(sequence) == Arrival::InOrder));
        assert!(tracker.irregular.is_none());
        assert_eq!(tracker.summary(), SequenceSummary { received: 1000, duplicates: 0, late: 0 });
    }

    #[test]
    fn forgotten_gaps_stay_lost() {
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
        fn it_agrees_with_a_set_of_all_sequence_numbers(sequences in proptest::collection::vec(0..60_u64, 0..200)) {
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
