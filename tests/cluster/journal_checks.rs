//! The comparison of journals finds each kind of fault.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::journals::{Checked, Content, Journal, Position, Sent, TrialRecord};

fn content(number: u64) -> Content {
    Content::parse(&Content::text("p", number)).expect("it is a content")
}

fn position(epoch: &str, offset: u64) -> Position {
    (epoch.to_owned(), offset)
}

/// Returns the journal of a reader that got messages, each with the number of its offset.
fn reader(offsets: std::ops::RangeInclusive<u64>) -> Journal {
    let mut journal = Journal::new("reader".to_owned());
    journal.begin_segment(Some(position("e", *offsets.start() - 1)), None);
    offsets.for_each(|offset| journal.message(position("e", offset), content(offset)));
    journal
}

/// Returns messages that were acknowledged, each with the number of its offset.
fn publisher(offsets: std::ops::RangeInclusive<u64>) -> Sent {
    let acknowledged = offsets.map(|offset| (content(offset), position("e", offset))).collect();
    Sent { acknowledged, ..Sent::default() }
}

fn record(sent: Sent, journals: impl IntoIterator<Item = Journal>) -> TrialRecord {
    TrialRecord { sent: vec![sent], journals: journals.into_iter().collect(), stored: Vec::new() }
}

fn fails(check: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(check)).is_err()
}

#[test]
fn comparisons_of_journals_find_each_kind_of_fault() {
    record(publisher(1..=9), [reader(1..=9), reader(1..=9)]).check_lossless();
    // A hole that nobody told, and an earlier message.
    assert!(fails(|| reader(1..=3).message(position("e", 5), content(5))));
    assert!(fails(|| reader(1..=3).message(position("e", 3), content(3))));
    assert!(fails(|| reader(1..=3).message(position("f", 4), content(4))));
    // A message that is stored twice, or that swaps positions with another one of its publisher.
    for number in [3, 2] {
        let mut journal = reader(1..=3);
        journal.message(position("e", 4), content(number));
        assert!(fails(|| record(publisher(1..=3), [journal]).check()));
    }
    // The last message is missing.
    assert!(fails(|| record(publisher(1..=9), [reader(1..=9), reader(1..=8)]).check()));
    // The first one is older than the subscription.
    record(publisher(1..=9), [reader(2..=9)]).check();
    assert!(fails(|| record(publisher(1..=9), [reader(2..=9)]).check_lossless()));
    // A hole that was told.
    let mut journal = reader(1..=3);
    journal.begin_segment(Some(position("e", 5)), Some("trimmed"));
    (6..=9).for_each(|offset| journal.message(position("e", offset), content(offset)));
    let record_with_hole = record(publisher(1..=9), [journal]);
    record_with_hole.check();
    assert!(fails(|| record_with_hole.check_lossless()));
    // A position of two messages.
    let mut other = reader(1..=3);
    other.message(position("e", 4), content(5));
    let of_two = record(publisher(1..=3), [reader(1..=4), other]);
    assert!(fails(|| of_two.check()));
    of_two.check_journals(Checked::All);
    // A message that was refused.
    let refused = Sent { refused: [content(2)].into(), ..Sent::default() };
    assert!(fails(|| record(refused, [reader(1..=3)]).check()));
}
