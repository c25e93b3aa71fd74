use super::*;
use crate::{Epoch, Evicted, Gap, Predecessor, Restored, Retention, Seconds, Step};
use proptest::prelude::*;
use std::time::Duration;

const BOUNDS: Retention = Retention { messages: 6, bytes: 1000, ttl_seconds: 10 };

fn epoch() -> Epoch {
    Epoch::from_bits(1)
}

/// A stream with the offsets 5 to 10.
fn stream() -> Stream<u64> {
    let mut stream = Stream::new(epoch());
    for _ in 0..10 {
        stream.append(&BOUNDS, Seconds::new(0), &mut Evicted::new(), |_, offset| (offset, 1));
    }
    stream
}

fn recover<'a>(epoch: &'a Epoch, offset: u64) -> SubscribeRequest<'a> {
    let recover = Recover { epoch: epoch.as_str(), offset, time_ms: None, partial: false };
    SubscribeRequest { recover: Some(recover), history: 0 }
}

fn partial(mut request: SubscribeRequest<'_>) -> SubscribeRequest<'_> {
    request.recover.iter_mut().for_each(|recover| recover.partial = true);
    request
}

/// Returns the result, the offset of the reply, and the number of replayed messages.
fn outcome(start: &Start) -> (&'static str, Option<u64>, u64) {
    let recovery = match start.recovery {
        None => "fresh",
        Some(Ok(())) => "recovered",
        Some(Err(reason)) => reason.as_str(),
    };
    (recovery, start.cursor.map(|cursor| cursor.offset()), start.replay)
}

fn judged(stream: &Stream<u64>, request: &SubscribeRequest<'_>) -> (&'static str, Option<u64>, u64) {
    outcome(&judge(Some(stream), SubscriptionScope::Topic, request, Delivery::Lossless))
}

#[test]
fn a_good_position_is_recovered() {
    let (stream, epoch) = (stream(), epoch());
    for (offset, replay) in [(10, 0), (9, 1), (5, 5), (4, 6)] {
        // `history` counts only if recovering fails.
        let request = SubscribeRequest { history: 3, ..recover(&epoch, offset) };
        assert_eq!(judged(&stream, &request), ("recovered", Some(offset), replay));
    }
}

#[test]
fn each_bad_position_has_its_reason() {
    let (stream, epoch, other) = (stream(), epoch(), Epoch::from_bits(2));
    assert_eq!(judged(&stream, &recover(&epoch, 3)), ("trimmed", Some(10), 0));
    assert_eq!(judged(&stream, &recover(&epoch, 0)), ("trimmed", Some(10), 0));
    assert_eq!(judged(&stream, &recover(&epoch, 11)), ("ahead", Some(10), 0));
    assert_eq!(judged(&stream, &recover(&epoch, u64::MAX)), ("ahead", Some(10), 0));
    assert_eq!(judged(&stream, &recover(&other, 10)), ("epoch", Some(10), 0));
    for text in ["", "x", "00000000 and more", "\u{e9}"] {
        let recover = Recover { epoch: text, offset: 10, time_ms: Some(1), partial: false };
        let request = SubscribeRequest { recover: Some(recover), history: 0 };
        assert_eq!(judged(&stream, &request), ("epoch", Some(10), 0), "{text}");
    }
}

#[test]
fn an_empty_stream_recovers_a_client_that_missed_nothing() {
    let (mut stream, epoch) = (stream(), epoch());
    stream.expire(BOUNDS.ttl_seconds, Seconds::new(100), &mut Evicted::new());
    assert_eq!(judged(&stream, &recover(&epoch, 10)), ("recovered", Some(10), 0));
    assert_eq!(judged(&stream, &recover(&epoch, 9)), ("trimmed", Some(10), 0));
    assert_eq!(judged(&stream, &partial(recover(&epoch, 9))), ("trimmed", Some(10), 0));
    // A position from before the first message.
    assert_eq!(judged(&Stream::new(epoch), &recover(&epoch, 0)), ("recovered", Some(0), 0));
}

#[test]
fn a_subscription_that_no_stream_serves_has_no_position() {
    let (stream, epoch) = (stream(), epoch());
    let fresh = SubscribeRequest { recover: None, history: 3 };
    for (stream, scope, request, expected) in [
        (None, SubscriptionScope::Topic, recover(&epoch, 1), ("no_history", None, 0)),
        (None, SubscriptionScope::Overlapping, recover(&epoch, 1), ("no_history", None, 0)),
        (None, SubscriptionScope::Topic, fresh, ("fresh", None, 0)),
        (Some(&stream), SubscriptionScope::Pattern, partial(recover(&epoch, 9)), ("pattern", None, 0)),
        (None, SubscriptionScope::Pattern, recover(&epoch, 9), ("pattern", None, 0)),
        (Some(&stream), SubscriptionScope::Pattern, fresh, ("fresh", None, 0)),
        (
            Some(&stream),
            SubscriptionScope::Overlapping,
            partial(recover(&epoch, 9)),
            ("overlap", Some(10), 0),
        ),
        (Some(&stream), SubscriptionScope::Overlapping, fresh, ("fresh", Some(10), 0)),
    ] {
        let start = judge(stream, scope, &request, Delivery::Lossless);
        assert_eq!(outcome(&start), expected, "{scope:?} {request:?}");
    }
}

#[test]
fn history_and_partial_start_before_kept_messages() {
    let (stream, epoch, other) = (stream(), epoch(), Epoch::from_bits(2));
    let last = |history| SubscribeRequest { recover: None, history };
    for (history, offset) in [(0, 10), (1, 9), (6, 4), (7, 4), (u64::MAX, 4)] {
        assert_eq!(judged(&stream, &last(history)), ("fresh", Some(offset), 10 - offset));
        let failed = SubscribeRequest { history, ..recover(&other, 10) };
        assert_eq!(judged(&stream, &failed), ("epoch", Some(offset), 10 - offset));
        // `partial` goes before `history`.
        assert_eq!(judged(&stream, &partial(failed)), ("epoch", Some(4), 6));
    }
    assert_eq!(judged(&stream, &partial(recover(&epoch, 2))), ("trimmed", Some(4), 6));
    assert_eq!(judged(&stream, &partial(recover(&epoch, 7))), ("recovered", Some(7), 3));
}

#[test]
fn a_delivery_that_skips_replays_what_really_comes() {
    let (stream, epoch) = (stream(), epoch());
    let start = |delivery, request: &SubscribeRequest<'_>| {
        judge(Some(&stream), SubscriptionScope::Topic, request, delivery)
    };
    let keep = Delivery::DropOldest { keep: 2 };
    let sample = Delivery::Sample { every: Duration::from_secs(1) };
    for (delivery, replay) in [(keep, 2), (Delivery::Latest, 1), (sample, 1), (Delivery::Close, 5)] {
        assert_eq!(outcome(&start(delivery, &recover(&epoch, 5))), ("recovered", Some(5), replay));
        assert_eq!(outcome(&start(delivery, &recover(&epoch, 10))), ("recovered", Some(10), 0));
    }
    // A client that asks for more than its delivery gives starts where nothing is skipped.
    let request = SubscribeRequest { recover: None, history: 5 };
    assert_eq!(outcome(&start(keep, &request)), ("fresh", Some(8), 2));
    assert_eq!(outcome(&start(Delivery::Latest, &request)), ("fresh", Some(9), 1));
    assert_eq!(outcome(&start(keep, &partial(recover(&epoch, 1)))), ("trimmed", Some(8), 2));
    // The gap stands before the messages.
    let mut cursor = start(keep, &recover(&epoch, 5)).cursor.unwrap();
    let gap = Gap { epoch, from: Some(6), to: 8, reason: crate::GapReason::Dropped };
    assert_eq!(cursor.advance(&stream, keep), Some(Step::Gap(gap)));
}

#[test]
fn a_position_of_the_predecessor_is_good_up_to_what_was_restored() {
    let (old, new) = (Epoch::from_bits(1), Epoch::from_bits(2));
    let messages = (35..=40).map(|message| Restored { message, bytes: 1, at: Seconds::new(0) });
    let predecessor = Predecessor { epoch: old, newest: 40 };
    let mut stream = Stream::restore(new, 40, Some(predecessor), messages);
    stream.append(&BOUNDS, Seconds::new(0), &mut Evicted::new(), |_, offset| (offset, 1));
    for (epoch, offset, expected) in [
        (old, 40, ("recovered", Some(40), 1)),
        (old, 35, ("recovered", Some(35), 6)),
        (old, 34, ("trimmed", Some(41), 0)),
        (old, 41, ("epoch", Some(41), 0)),
        (new, 41, ("recovered", Some(41), 0)),
        (new, 42, ("ahead", Some(41), 0)),
        (Epoch::from_bits(3), 40, ("epoch", Some(41), 0)),
    ] {
        assert_eq!(judged(&stream, &recover(&epoch, offset)), expected, "{epoch} {offset}");
    }
    let start = judge(Some(&stream), SubscriptionScope::Topic, &recover(&old, 40), Delivery::Lossless);
    assert_eq!(start.cursor.map(|cursor| cursor.epoch()), Some(new));
    // Whoever empties the stream ends the predecessor too.
    stream.clear(4, &mut Evicted::new());
    assert_eq!(judged(&stream, &recover(&old, 40)).0, "epoch");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    /// A recovered client gets every message after its position, a client that is not recovered has
    /// missed one (or is of another stream), and `replay` counts what comes.
    #[test]
    fn the_judgement_agrees_with_a_list_of_all_messages(
        pauses in proptest::collection::vec(0..6_u32, 0..60),
        clear_at in 0..80_usize,
        position in (any::<bool>(), 0..70_u64),
        history in proptest::option::of(0..70_u64),
        is_partial: bool,
        delivery in prop_oneof![
            Just(Delivery::Lossless), Just(Delivery::Latest), Just(Delivery::Close),
            (1..9_u32).prop_map(|keep| Delivery::DropOldest { keep }),
        ],
    ) {
        let (mut stream, mut evicted, mut now) = (Stream::new(epoch()), Evicted::new(), 0);
        let mut published = Vec::new();
        for (number, pause) in pauses.iter().enumerate() {
            now += pause;
            if number == clear_at {
                stream.clear(9, &mut evicted);
                published.clear();
            }
            stream.append(&BOUNDS, Seconds::new(now), &mut evicted, |_, offset| (offset, 1));
            published.push((stream.newest(), now));
        }
        stream.expire(BOUNDS.ttl_seconds, Seconds::new(now), &mut evicted);
        let newest = pauses.len() as u64;
        let kept: Vec<u64> = published.iter().rev().take(6)
            .filter(|(_, at)| now - at <= BOUNDS.ttl_seconds)
            .map(|(offset, _)| *offset).collect();

        let (is_first_epoch, offset) = position;
        let asked = if is_first_epoch { epoch() } else { Epoch::from_bits(9) };
        let mut request = recover(&asked, offset);
        request.history = history.unwrap_or(0);
        if is_partial {
            request = partial(request);
        }
        let expected = if asked != stream.epoch() {
            Err(NotRecovered::Epoch)
        } else if offset > newest {
            Err(NotRecovered::Ahead)
        } else if (offset + 1..=newest).all(|missed| kept.contains(&missed)) {
            Ok(())
        } else {
            Err(NotRecovered::Trimmed)
        };
        let start = judge(Some(&stream), SubscriptionScope::Topic, &request, delivery);
        prop_assert_eq!(start.recovery, Some(expected));

        let (mut messages, mut gaps) = (Vec::new(), Vec::new());
        let mut cursor = start.cursor.unwrap();
        let begin = cursor.offset();
        while let Some(step) = cursor.advance(&stream, delivery) {
            match step {
                Step::Message { offset, message, .. } => {
                    prop_assert_eq!(offset, *message);
                    messages.push(offset);
                }
                Step::Gap(gap) => gaps.push(gap),
                Step::Stored { .. } | Step::Close => prop_assert!(false, "nothing is missed or stored"),
            }
            prop_assert!(messages.len() + gaps.len() <= 100, "the cursor does not end");
        }
        prop_assert_eq!(messages.len() as u64, start.replay);
        if expected.is_ok() {
            prop_assert_eq!(begin, offset);
            let all: Vec<u64> = (offset + 1..=newest).collect();
            let from = all.len().saturating_sub(usize::try_from(delivery.max_messages()).unwrap_or(usize::MAX));
            prop_assert_eq!(&messages, &all[from..]);
            prop_assert_eq!(gaps.is_empty(), from == 0);
        } else {
            prop_assert!(gaps.is_empty());
            let wanted = if is_partial { u64::MAX } else { request.history };
            let count = wanted.min(kept.len() as u64).min(delivery.max_messages());
            prop_assert_eq!(messages, (newest - count + 1..=newest).collect::<Vec<_>>());
            prop_assert_eq!(begin, newest - count);
        }
    }
}
