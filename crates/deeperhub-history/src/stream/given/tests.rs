use super::*;
use crate::{
    Cursor, Delivery, Epoch, Gap, NotRecovered, Recover, Start, Step, SubscribeRequest, SubscriptionScope,
    judge,
};
use proptest::prelude::*;
use std::time::Duration;

const BOUNDS: Retention = Retention { messages: 5, bytes: 1000, ttl_seconds: 10 };

fn stored(offset: u64, bytes: usize, at: u32) -> StoredMessage<u64> {
    let at = Seconds::new(at);
    StoredMessage { offset, prev: 0, message: offset * 100, bytes, at, is_duplicate: false }
}

fn append(stream: &mut Stream<u64>, offsets: &[u64]) {
    for offset in offsets {
        assert!(stream.append_at(&BOUNDS, Seconds::new(0), &mut Evicted::new(), stored(*offset, 1, 0)));
    }
}

fn sparse(offsets: &[u64]) -> Stream<u64> {
    let mut stream = Stream::new(Epoch::from_bits(1));
    append(&mut stream, offsets);
    stream
}

fn kept(stream: &Stream<u64>) -> Vec<u64> {
    let kept: Vec<_> = stream.messages(..).map(|(offset, _)| offset).collect();
    assert!(stream.messages(..).all(|(offset, message)| *message == offset * 100));
    assert_eq!(kept.len(), stream.len());
    kept
}

fn judged(stream: &Stream<u64>, offset: u64) -> Start {
    let epoch = stream.epoch();
    let recover = Recover { epoch: epoch.as_str(), offset, time_ms: None, partial: false };
    let request = SubscribeRequest { recover: Some(recover), history: 0 };
    judge(Some(stream), SubscriptionScope::Topic, &request, Delivery::Lossless)
}

/// Describes all steps of a cursor: `5<3` is a message with `prev`, `-4..6 lost` a gap.
fn steps(stream: &Stream<u64>, from: u64, delivery: Delivery) -> String {
    let (mut cursor, mut steps) = (Cursor::new(stream.epoch(), from), Vec::new());
    while let Some(step) = cursor.advance(stream, delivery) {
        steps.push(match step {
            Step::Message { offset, prev: None, .. } => offset.to_string(),
            Step::Message { offset, prev: Some(prev), .. } => format!("{offset}<{prev}"),
            Step::Gap(gap) => format!("-{}..{} {}", gap.from.unwrap_or(0), gap.to, gap.reason),
            Step::Stored { .. } => "stored".to_owned(),
            Step::Close => "close".to_owned(),
        });
        if steps.last().is_some_and(|step| step == "close") || steps.len() > 100 {
            break;
        }
    }
    assert!(!cursor.is_behind(stream) || steps.last().is_some_and(|step| step == "close"));
    steps.join(" ")
}

#[test]
fn a_dense_stream_takes_no_more_memory() {
    let dense = sparse(&[1, 2, 3, 4]);
    assert!(dense.rest.is_none());
    assert_eq!(size_of::<Stream<u64>>(), 64);
    assert_eq!(size_of::<Rest>(), 72);
    // A hole costs its memory only while a message before it is kept.
    let mut stream = sparse(&[1, 2, 4]);
    let sparse_bytes = stream.heap_bytes();
    assert!(sparse_bytes > dense.heap_bytes());
    append(&mut stream, &[5, 6, 7, 8]);
    assert_eq!((kept(&stream), stream.oldest()), (vec![4, 5, 6, 7, 8], 3));
    append(&mut stream, &[9]);
    assert!(stream.rest.is_none());
    assert_eq!((kept(&stream), stream.oldest()), (vec![5, 6, 7, 8, 9], 5));
    assert_eq!(stream.heap_bytes(), sparse(&[1, 2, 3, 4, 5]).heap_bytes());
}

#[test]
fn positions_between_messages_are_good() {
    let mut stream = sparse(&[10, 20, 30, 40, 50]);
    assert_eq!((stream.oldest(), stream.newest(), stream.live_offset()), (1, 50, 50));
    let good = |stream: &Stream<u64>| -> Vec<(u64, u64)> {
        let starts = (0..60).map(|offset| (offset, judged(stream, offset)));
        starts
            .filter(|(_, start)| start.recovery == Some(Ok(())))
            .map(|(at, start)| (at, start.replay))
            .collect()
    };
    assert_eq!((good(&stream)[0], good(&stream).len()), ((0, 5), 51));
    append(&mut stream, &[60]);
    assert_eq!((stream.oldest(), good(&stream)[0], good(&stream).len()), (11, (10, 5), 50));
    assert_eq!(judged(&stream, 9).recovery, Some(Err(NotRecovered::Trimmed)));
    stream.expire(10, Seconds::new(11), &mut Evicted::new());
    assert_eq!((stream.oldest(), good(&stream)), (61, vec![]));
    assert_eq!((judged(&stream, 60).recovery, judged(&stream, 60).replay), (Some(Ok(())), 0));
    assert!(stream.rest.is_none());
    append(&mut stream, &[70]);
    assert_eq!((stream.oldest(), kept(&stream)), (61, vec![70]));
    assert_eq!((judged(&stream, 60).replay, judged(&stream, 65).replay), (1, 1));
}

#[test]
fn each_delivery_moves_over_holes() {
    let mut stream = sparse(&[10, 20, 30]);
    stream.skip_missing(35, GapReason::Lost, &mut Evicted::new());
    append(&mut stream, &[40, 50]);
    let keep = |keep| Delivery::DropOldest { keep };
    let sample = Delivery::Sample { every: Duration::from_secs(1) };
    for (delivery, from, expected) in [
        (Delivery::Lossless, 50, ""),
        (Delivery::Lossless, 45, "50<45"),
        (Delivery::Lossless, 37, "40<37 50<40"),
        (Delivery::Lossless, 33, "-34..35 lost 40<35 50<40"),
        (Delivery::Lossless, 20, "30<20 -31..35 lost 40<35 50<40"),
        (Delivery::Lossless, 0, "10<0 20<10 30<20 -31..35 lost 40<35 50<40"),
        (keep(1), 45, "50<45"),
        (keep(1), 35, "-36..40 dropped 50<40"),
        (keep(2), 30, "-31..35 lost 40<35 50<40"),
        (keep(2), 29, "-30..35 dropped 40<35 50<40"),
        (keep(3), 12, "-13..20 dropped 30<20 -31..35 lost 40<35 50<40"),
        (keep(9), 0, "10<0 20<10 30<20 -31..35 lost 40<35 50<40"),
        (Delivery::Latest, 40, "50<40"),
        (Delivery::Latest, 44, "50<44"),
        (Delivery::Latest, 30, "-31..40 conflated 50<40"),
        (sample, 30, "50<30"),
        (Delivery::Close, 35, "40<35 50<40"),
        (Delivery::Close, 30, "close"),
    ] {
        assert_eq!(steps(&stream, from, delivery), expected, "{delivery:?} from {from}");
    }
    // Nothing has followed the missing messages yet.
    stream.skip_missing(60, GapReason::Lost, &mut Evicted::new());
    assert_eq!((stream.newest(), stream.live_offset(), judged(&stream, 59).replay), (60, 60, 0));
    assert_eq!(judged(&stream, 59).recovery, Some(Err(NotRecovered::Trimmed)));
    for delivery in [Delivery::Lossless, keep(1), Delivery::Latest] {
        assert_eq!(steps(&stream, 55, delivery), "-56..60 lost", "{delivery:?}");
    }
    append(&mut stream, &[61]);
    assert_eq!(steps(&stream, 50, sample), "61<50");
    assert_eq!(steps(&stream, 50, Delivery::Latest), "-51..60 lost 61");
}

#[test]
fn a_duplicate_belongs_to_nobody() {
    let mut stream = sparse(&[1, 2]);
    stream.pass_to(3);
    stream.pass_to(2);
    assert_eq!((stream.newest(), stream.live_offset(), kept(&stream)), (3, 2, vec![1, 2]));
    assert_eq!(steps(&stream, 2, Delivery::Lossless), "");
    append(&mut stream, &[4]);
    assert_eq!(
        (steps(&stream, 2, Delivery::Lossless), steps(&stream, 3, Delivery::Lossless)),
        ("4<2".into(), "4".into())
    );
    assert_eq!((judged(&stream, 2).replay, judged(&stream, 3).replay), (1, 1));
    // Without a kept message, the position before the duplicate is still good.
    stream.expire(10, Seconds::new(11), &mut Evicted::new());
    stream.pass_to(5);
    assert_eq!((judged(&stream, 4).recovery, stream.live_offset()), (Some(Ok(())), 4));
    append(&mut stream, &[6]);
    assert_eq!(steps(&stream, 4, Delivery::Lossless), "6<4");
}

#[test]
fn an_offset_is_never_used_again() {
    let mut stream = sparse(&[5]);
    for offset in [0, 4, 5] {
        assert!(!stream.append_at(&BOUNDS, Seconds::new(0), &mut Evicted::new(), stored(offset, 1, 0)));
        stream.skip_missing(offset, GapReason::Lost, &mut Evicted::new());
    }
    assert_eq!((kept(&stream), stream.newest()), (vec![5], 5));
    // A message over the bounds is not kept, and nothing before it is.
    let mut evicted = Evicted::new();
    stream.skip_missing(7, GapReason::Lost, &mut evicted);
    assert!(stream.append_at(&BOUNDS, Seconds::new(0), &mut evicted, stored(9, 1001, 0)));
    assert_eq!((kept(&stream), stream.oldest()), (vec![], 10));
    assert!(evicted.messages().eq(&[500, 900]));
    assert_eq!(
        (judged(&stream, 8).recovery, stream.rest.is_none()),
        (Some(Err(NotRecovered::Trimmed)), true)
    );
    // Offsets go on from the given ones.
    let offset = stream.append(&BOUNDS, Seconds::new(0), &mut evicted, |_, offset| (offset * 100, 1));
    append(&mut stream, &[15]);
    let next = stream.append(&BOUNDS, Seconds::new(0), &mut evicted, |_, offset| (offset * 100, 1));
    assert_eq!((offset, next, kept(&stream)), (10, 16, vec![10, 15, 16]));
    stream.start_epoch(Epoch::from_bits(2), 3, &mut evicted);
    assert_eq!((kept(&stream), stream.newest(), stream.oldest()), (vec![], 3, 4));
    assert_eq!(
        (judged(&stream, 3).recovery, judged(&stream, 2).recovery),
        (Some(Ok(())), Some(Err(NotRecovered::Trimmed)))
    );
}

#[test]
fn missing_ranges_are_bounded() {
    let bounds = Retention { messages: 1000, bytes: 10_000, ttl_seconds: 10 };
    let (mut stream, mut evicted) = (Stream::new(Epoch::from_bits(1)), Evicted::new());
    for number in 1..=100_u64 {
        stream.append_at(&bounds, Seconds::new(0), &mut evicted, stored(10 * number, 1, 0));
        stream.skip_missing(10 * number + 5, GapReason::Lost, &mut evicted);
    }
    let missing = u64::try_from(super::super::sparse::MAX_MISSING).unwrap();
    assert_eq!((stream.len() as u64, stream.oldest()), (missing - 1, (101 - missing) * 10 + 1));
    // Ranges of two reasons without a message between them are bounded, too.
    let mut stream = Stream::<u64>::new(Epoch::from_bits(1));
    for to in 1..=100 {
        let reason = if to % 2 == 0 { GapReason::Lost } else { GapReason::Trimmed };
        stream.skip_missing(to, reason, &mut evicted);
    }
    assert_eq!((stream.oldest(), stream.newest()), (100 - missing + 1, 100));
}

mod model;
