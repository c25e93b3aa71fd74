use super::*;
use crate::{Evicted, Retention, Seconds};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const SAMPLE: Delivery = Delivery::Sample { every: Duration::from_secs(1) };

fn stream(messages: u64, kept: u32) -> Stream<u64> {
    let mut stream = Stream::new(Epoch::from_bits(1));
    publish(&mut stream, messages, kept);
    stream
}

fn publish(stream: &mut Stream<u64>, messages: u64, kept: u32) {
    let bounds = Retention { messages: kept, bytes: 1000, ttl_seconds: 10 };
    for _ in 0..messages {
        stream.append(&bounds, Seconds::new(0), &mut Evicted::new(), |_, offset| (offset, 1));
    }
}

/// Describes all steps of a cursor: `5` is a message, `5<3` one with `prev`, `-4..6 trimmed` a gap.
fn steps_where(
    cursor: &mut Cursor,
    stream: &Stream<u64>,
    delivery: Delivery,
    is_wanted: fn(&u64) -> bool,
) -> String {
    let mut steps = Vec::new();
    while let Some(step) = cursor.advance_where(stream, delivery, is_wanted) {
        steps.push(match step {
            Step::Message { offset, prev: None, .. } => offset.to_string(),
            Step::Message { offset, prev: Some(prev), .. } => format!("{offset}<{prev}"),
            Step::Gap(Gap { from: Some(from), to, reason, .. }) => format!("-{from}..{to} {reason}"),
            Step::Gap(Gap { from: None, to, reason, .. }) => format!("-{to} {reason}"),
            Step::Stored { from, to } => format!("stored {from}-{to}"),
            Step::Close => "close".to_owned(),
        });
        if steps.last().is_some_and(|step| step == "close") {
            break;
        }
        assert!(steps.len() < 100, "the cursor does not end: {steps:?}");
    }
    steps.join(" ")
}

fn steps(cursor: &mut Cursor, stream: &Stream<u64>, delivery: Delivery) -> String {
    steps_where(cursor, stream, delivery, |_| true)
}

#[test]
fn each_delivery_moves_in_its_way() {
    // Offsets 5 to 10 are kept.
    let stream = stream(10, 6);
    let keep = |keep| Delivery::DropOldest { keep };
    for (delivery, from, expected) in [
        (Delivery::Lossless, 10, ""),
        (Delivery::Lossless, 7, "8 9 10"),
        (Delivery::Lossless, 4, "5 6 7 8 9 10"),
        (Delivery::Lossless, 1, "-2..4 trimmed 5 6 7 8 9 10"),
        (keep(2), 9, "10"),
        (keep(2), 8, "9 10"),
        (keep(2), 5, "-6..8 dropped 9 10"),
        (keep(2), 0, "-1..8 dropped 9 10"),
        (keep(6), 0, "-1..4 dropped 5 6 7 8 9 10"),
        (keep(7), 0, "-1..4 trimmed 5 6 7 8 9 10"),
        (keep(100), 6, "7 8 9 10"),
        (keep(0), 7, "-8..9 dropped 10"),
        (Delivery::Latest, 9, "10"),
        (Delivery::Latest, 5, "-6..9 conflated 10"),
        (Delivery::Latest, 0, "-1..9 conflated 10"),
        (SAMPLE, 9, "10"),
        (SAMPLE, 5, "10<5"),
        (SAMPLE, 0, "10<0"),
        (Delivery::Close, 4, "5 6 7 8 9 10"),
        (Delivery::Close, 3, "close"),
    ] {
        let mut cursor = Cursor::new(stream.epoch(), from);
        assert_eq!(cursor.is_behind(&stream), !expected.is_empty());
        assert_eq!(steps(&mut cursor, &stream, delivery), expected, "{delivery:?} from {from}");
        if expected != "close" {
            assert_eq!(cursor, Cursor::new(stream.epoch(), 10), "{delivery:?} from {from}");
        }
    }
}

#[test]
fn a_stream_without_kept_messages_leaves_one_gap() {
    let mut stream = stream(10, 6);
    stream.expire(10, Seconds::new(100), &mut Evicted::new());
    for delivery in [Delivery::Lossless, Delivery::DropOldest { keep: 2 }, Delivery::Latest, SAMPLE] {
        let mut cursor = Cursor::new(stream.epoch(), 7);
        assert_eq!(cursor.messages_left(&stream, stream.oldest(), delivery), 0);
        assert_eq!(steps(&mut cursor, &stream, delivery), "-8..10 trimmed");
        assert!(!cursor.is_behind(&stream));
    }
    // If there is a message, it tells what a sample skipped.
    publish(&mut stream, 1, 6);
    let mut cursor = Cursor::new(stream.epoch(), 7);
    assert_eq!(steps(&mut cursor, &stream, SAMPLE), "11<7");
}

#[test]
fn a_new_epoch_is_told_once() {
    for (delivery, expected) in [
        (Delivery::Lossless, "-13 epoch 14 15"),
        (Delivery::DropOldest { keep: 1 }, "-14 epoch 15"),
        (Delivery::Latest, "-14 epoch 15"),
        (SAMPLE, "-14 epoch 15"),
        (Delivery::Close, "-13 epoch 14 15"),
    ] {
        let mut stream = stream(10, 6);
        let mut cursor = Cursor::new(stream.epoch(), 7);
        stream.clear(2, &mut Evicted::new());
        let mut early = cursor;
        assert_eq!(steps(&mut early, &stream, delivery), "-10 epoch");
        publish(&mut stream, 5, 2);
        assert_eq!(steps(&mut cursor, &stream, delivery), expected, "{delivery:?}");
        assert_eq!(cursor.epoch(), stream.epoch());
    }
}

#[test]
fn unwanted_messages_are_bridged_by_prev() {
    let stream = stream(10, 6);
    let mut cursor = Cursor::new(stream.epoch(), 4);
    assert_eq!(steps_where(&mut cursor, &stream, Delivery::Lossless, |offset| offset % 3 == 0), "6<4 9<6");
    assert_eq!(cursor.offset(), 9);
    assert!(!cursor.is_behind(&stream));
    for (delivery, expected) in [(Delivery::Latest, "-5..8 conflated 9"), (SAMPLE, "9<4")] {
        let mut cursor = Cursor::new(stream.epoch(), 4);
        assert_eq!(steps_where(&mut cursor, &stream, delivery, |offset| offset % 3 == 0), expected);
        let mut cursor = Cursor::new(stream.epoch(), 4);
        assert_eq!(steps_where(&mut cursor, &stream, delivery, |_| false), "");
        assert_eq!(cursor.offset(), 4);
    }
    // Only what is not kept is a gap.
    for delivery in [Delivery::Latest, SAMPLE] {
        let mut cursor = Cursor::new(stream.epoch(), 2);
        assert_eq!(steps_where(&mut cursor, &stream, delivery, |_| false), "-3..4 trimmed");
    }
}

#[test]
fn a_position_beyond_the_stream_yields_nothing() {
    let stream = stream(3, 6);
    for offset in [3, 4, u64::MAX] {
        let mut cursor = Cursor::new(stream.epoch(), offset);
        assert_eq!(cursor.messages_left(&stream, stream.oldest(), Delivery::Lossless), 0);
        assert_eq!(steps(&mut cursor, &stream, Delivery::Lossless), "");
    }
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Publish(u8),
    Expire(u8),
    Clear,
    /// One cursor takes some steps.
    Advance(usize, u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (1..8_u8).prop_map(Change::Publish),
        1 => (0..30_u8).prop_map(Change::Expire),
        1 => Just(Change::Clear),
        12 => (0..SUBSCRIBERS, 1..6_u8).prop_map(|(subscriber, steps)| Change::Advance(subscriber, steps)),
    ]
}

const DELIVERIES: [Delivery; 6] = [
    Delivery::Lossless,
    Delivery::DropOldest { keep: 1 },
    Delivery::DropOldest { keep: 4 },
    Delivery::Latest,
    SAMPLE,
    Delivery::Close,
];

/// Two for each delivery: one wants all messages, one only some.
const SUBSCRIBERS: usize = 2 * DELIVERIES.len();

/// A client that checks what it is told against everything that was published.
#[derive(Debug)]
struct Client {
    cursor: Cursor,
    delivery: Delivery,
    wants_all: bool,
    epoch: Epoch,
    offset: u64,
    is_closed: bool,
}

impl Client {
    fn wants(&self, message: u64) -> bool {
        self.wants_all || !message.is_multiple_of(3)
    }

    /// Takes a step and checks it. Returns `false` if there is none.
    fn step(&mut self, stream: &Stream<u64>, published: &BTreeMap<(Epoch, u64), u64>) -> bool {
        let wants_all = self.wants_all;
        let wants = move |message: &u64| wants_all || !message.is_multiple_of(3);
        let expected_end = stream.newest();
        let Some(step) = self.cursor.advance_where(stream, self.delivery, wants) else {
            let may_skip =
                |offset| published.get(&(self.epoch, offset)).is_none_or(|message| !self.wants(*message));
            assert!((self.offset + 1..=expected_end).all(may_skip), "{self:?} stops early");
            assert_eq!(self.epoch, stream.epoch());
            return false;
        };
        match step {
            Step::Message { offset, prev, message } => {
                assert_eq!(prev.unwrap_or(offset - 1), self.offset, "the chain is broken: {self:?}");
                assert_ne!(prev, Some(offset - 1));
                assert_eq!(published.get(&(self.epoch, offset)), Some(message));
                assert!(self.wants(*message));
                for skipped in self.offset + 1..offset {
                    let message = published[&(self.epoch, skipped)];
                    assert!(!self.wants(message) || self.delivery == SAMPLE, "{skipped} skipped: {self:?}");
                }
                if self.delivery.max_messages() == 1 && self.delivery != (Delivery::DropOldest { keep: 1 }) {
                    let newer = (offset + 1..=stream.newest()).map(|newer| published[&(self.epoch, newer)]);
                    assert!(!newer.into_iter().any(|newer| self.wants(newer)), "not the newest: {self:?}");
                }
                self.offset = offset;
            }
            Step::Gap(gap) if gap.reason == GapReason::Epoch => {
                assert_eq!((gap.epoch, gap.from), (stream.epoch(), None));
                assert_ne!(gap.epoch, self.epoch);
                assert!((stream.oldest() - 1..=stream.newest()).contains(&gap.to));
                (self.epoch, self.offset) = (gap.epoch, gap.to);
            }
            Step::Gap(gap) => {
                assert_eq!(gap.position(5), self.cursor.position(5));
                assert_eq!((gap.epoch, gap.from), (self.epoch, Some(self.offset + 1)), "{self:?}");
                assert!(gap.to > self.offset && gap.to <= stream.newest());
                match (gap.reason, self.delivery) {
                    (GapReason::Trimmed, delivery) => {
                        assert_eq!(gap.to + 1, stream.oldest());
                        let none_wanted = stream.messages(..).all(|(_, message)| !self.wants(*message));
                        assert!(![Delivery::Latest, SAMPLE].contains(&delivery) || none_wanted);
                    }
                    (GapReason::Dropped, Delivery::DropOldest { keep }) => {
                        assert_eq!(gap.to, stream.newest() - u64::from(keep));
                    }
                    (GapReason::Conflated, Delivery::Latest) => {}
                    other => panic!("{other:?}"),
                }
                self.offset = gap.to;
            }
            Step::Stored { .. } => unreachable!("there is no store"),
            Step::Close => {
                assert_eq!(self.delivery, Delivery::Close);
                assert!(self.offset + 1 < stream.oldest());
                self.is_closed = true;
                return false;
            }
        }
        let position = self.cursor.position(5);
        assert_eq!((position.epoch, position.offset, position.time), (self.epoch, self.offset, 5));
        assert_eq!((self.cursor.epoch(), self.cursor.offset()), (self.epoch, self.offset));
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever happens to the stream, messages, gaps and `prev` of each subscriber cover every
    /// offset exactly once.
    #[test]
    fn the_steps_tell_every_offset_once(
        changes in proptest::collection::vec(change(), 1..120),
        messages in 1..20_u32,
    ) {
        let mut stream = Stream::new(Epoch::from_bits(0));
        let bounds = Retention { messages, bytes: 1000, ttl_seconds: 10 };
        let (mut published, mut now, mut next_epoch) = (BTreeMap::new(), 0, 0);
        let mut clients: Vec<Client> = (0..SUBSCRIBERS)
            .map(|number| Client {
                cursor: Cursor::new(stream.epoch(), 0),
                delivery: DELIVERIES[number / 2],
                wants_all: number % 2 == 0,
                epoch: stream.epoch(),
                offset: 0,
                is_closed: false,
            })
            .collect();
        for change in changes {
            match change {
                Change::Publish(count) => for _ in 0..count {
                    let message = published.len() as u64;
                    stream.append(&bounds, Seconds::new(now), &mut Evicted::new(), |epoch, offset| {
                        published.insert((epoch, offset), message);
                        (message, 1)
                    });
                },
                Change::Expire(pause) => {
                    now += u32::from(pause);
                    stream.expire(bounds.ttl_seconds, Seconds::new(now), &mut Evicted::new());
                }
                Change::Clear => {
                    next_epoch += 1;
                    stream.clear(next_epoch, &mut Evicted::new());
                }
                Change::Advance(number, steps) => {
                    let client = &mut clients[number];
                    (0..steps).all(|_| !client.is_closed && client.step(&stream, &published));
                }
            }
        }
        for client in &mut clients {
            while !client.is_closed && client.step(&stream, &published) {}
            let only_unwanted_left = client.is_closed
                || (client.offset + 1..=stream.newest())
                    .all(|offset| !client.wants(published[&(client.epoch, offset)]));
            prop_assert!(only_unwanted_left, "{:?}", client);
        }
    }
}

/// Returns the steps of a cursor in a stream whose messages up to 7 are only in a store, from
/// `oldest` on. The stream has the messages 8 to 10. Messages of the store follow each other in `()`.
fn steps_with_store(cursor: &mut Cursor, oldest: u64, delivery: Delivery) -> String {
    let stream = stream(10, 3);
    let mut steps = Vec::new();
    while let Some(step) = cursor.advance_within(&stream, oldest, delivery, |_| true) {
        match step {
            Step::Stored { from, to } => {
                let read = (from..=to).filter(|offset| cursor.pass_stored(*offset, true).is_some());
                steps.push(format!("({})", read.count()));
            }
            Step::Message { offset, prev, .. } => {
                assert_eq!(prev, None);
                steps.push(offset.to_string());
            }
            Step::Gap(gap) => steps.push(format!("-{:?}..{} {}", gap.from, gap.to, gap.reason)),
            Step::Close => {
                steps.push("close".to_owned());
                break;
            }
        }
        assert!(steps.len() < 100, "the cursor does not end: {steps:?}");
    }
    steps.join(" ")
}

#[test]
fn messages_of_a_store_come_before_those_in_memory() {
    let epoch = Epoch::from_bits(1);
    let keep = |keep| Delivery::DropOldest { keep };
    for (delivery, from, oldest, expected) in [
        (Delivery::Lossless, 10, 3, ""),
        (Delivery::Lossless, 7, 3, "8 9 10"),
        (Delivery::Lossless, 6, 3, "(1) 8 9 10"),
        (Delivery::Lossless, 2, 3, "(5) 8 9 10"),
        (Delivery::Lossless, 1, 3, "-Some(2)..2 trimmed (5) 8 9 10"),
        (Delivery::Close, 4, 3, "(3) 8 9 10"),
        (Delivery::Close, 1, 3, "close"),
        (keep(2), 0, 3, "-Some(1)..8 dropped 9 10"),
        (keep(5), 0, 3, "-Some(1)..5 dropped (2) 8 9 10"),
        (keep(9), 0, 3, "-Some(1)..2 trimmed (5) 8 9 10"),
        (Delivery::Latest, 0, 3, "-Some(1)..9 conflated 10"),
    ] {
        let steps = steps_with_store(&mut Cursor::new(epoch, from), oldest, delivery);
        assert_eq!(steps, expected, "{delivery:?} from {from}");
    }
    let other = Epoch::from_bits(2);
    let steps = steps_with_store(&mut Cursor::new(other, 50), 3, Delivery::Lossless);
    assert_eq!(steps, "-None..2 epoch (5) 8 9 10");
}

#[test]
fn the_newest_message_can_be_in_a_store_alone() {
    // The budget has evicted all messages.
    let stream = stream(10, 0);
    for delivery in [Delivery::Latest, Delivery::DropOldest { keep: 1 }] {
        let mut cursor = Cursor::new(stream.epoch(), 4);
        let first = cursor.advance_within(&stream, 3, delivery, |_| true);
        assert!(matches!(first, Some(Step::Gap(gap)) if (gap.from, gap.to) == (Some(5), 9)), "{first:?}");
        let second = cursor.advance_within(&stream, 3, delivery, |_| true);
        assert_eq!(second, Some(Step::Stored { from: 10, to: 10 }));
        assert_eq!(cursor.pass_stored(10, true), Some(None));
        assert_eq!(cursor.advance_within(&stream, 3, delivery, |_| true), None);
    }
}

#[test]
fn a_store_that_lacks_messages_makes_a_gap() {
    let mut cursor = Cursor::new(Epoch::from_bits(1), 4);
    assert_eq!(cursor.skip_lost(5), None);
    assert_eq!(cursor.pass_stored(5, false), None);
    let gap = cursor.skip_lost(8).unwrap();
    assert_eq!((gap.from, gap.to, gap.reason), (Some(5), 7, GapReason::Lost));
    assert_eq!((cursor.pass_stored(8, true), cursor.pass_stored(8, true)), (Some(None), None));
    assert_eq!(cursor.pass_stored(9, false), None);
    assert_eq!(cursor.pass_stored(10, true), Some(Some(8)));
}
