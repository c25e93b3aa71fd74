//! The comparison of journals finds each kind of fault.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::journals::{Content, Journal, Outcome, Place, Sent};

fn content(number: u64) -> Content {
    Content::parse(&Content::text("p", number)).expect("it is a content")
}

fn place(epoch: &str, offset: u64) -> Place {
    (epoch.to_owned(), offset)
}

/// A reader that stands at 1 and gets messages, each with the number of its offset.
fn reader(offsets: std::ops::RangeInclusive<u64>) -> Journal {
    let mut journal = Journal::new("reader".to_owned());
    journal.stand(Some(place("e", *offsets.start() - 1)), None);
    offsets.for_each(|offset| journal.message(place("e", offset), content(offset)));
    journal
}

/// A publisher whose messages were acknowledged, each with the number of its offset.
fn publisher(offsets: std::ops::RangeInclusive<u64>) -> Sent {
    let acknowledged = offsets.map(|offset| (content(offset), place("e", offset))).collect();
    Sent { acknowledged, ..Sent::default() }
}

fn outcome(sent: Sent, journals: impl IntoIterator<Item = Journal>) -> Outcome {
    Outcome { sent: vec![sent], journals: journals.into_iter().collect(), stored: Vec::new() }
}

fn fails(check: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(check)).is_err()
}

#[test]
fn comparisons_of_journals_find_each_kind_of_fault() {
    outcome(publisher(1..=9), [reader(1..=9), reader(1..=9)]).check_lossless();
    // A hole that nobody told, and an earlier message.
    assert!(fails(|| reader(1..=3).message(place("e", 5), content(5))));
    assert!(fails(|| reader(1..=3).message(place("e", 3), content(3))));
    assert!(fails(|| reader(1..=3).message(place("f", 4), content(4))));
    // A message that is stored twice, or that changes places with another one of its publisher.
    for number in [3, 2] {
        let mut journal = reader(1..=3);
        journal.message(place("e", 4), content(number));
        assert!(fails(|| outcome(publisher(1..=3), [journal]).check()));
    }
    // The last message is missing.
    assert!(fails(|| outcome(publisher(1..=9), [reader(1..=9), reader(1..=8)]).check()));
    // The first one is older than the subscription.
    outcome(publisher(1..=9), [reader(2..=9)]).check();
    assert!(fails(|| outcome(publisher(1..=9), [reader(2..=9)]).check_lossless()));
    // A hole that was told.
    let mut journal = reader(1..=3);
    journal.stand(Some(place("e", 5)), Some("trimmed"));
    (6..=9).for_each(|offset| journal.message(place("e", offset), content(offset)));
    let outcome_with_hole = outcome(publisher(1..=9), [journal]);
    outcome_with_hole.check();
    assert!(fails(|| outcome_with_hole.check_lossless()));
    // A position of two messages.
    let mut other = reader(1..=3);
    other.message(place("e", 4), content(5));
    let of_two = outcome(publisher(1..=3), [reader(1..=4), other]);
    assert!(fails(|| of_two.check()));
    of_two.check_journals(false);
    // A message that was refused.
    let refused = Sent { refused: [content(2)].into(), ..Sent::default() };
    assert!(fails(|| outcome(refused, [reader(1..=3)]).check()));
}
