use super::*;
use proptest::prelude::*;

fn bounds(messages: u32, bytes: u32, ttl_seconds: u32) -> Retention {
    Retention { messages, bytes, ttl_seconds }
}

fn append(stream: &mut Stream<u64>, bounds: &Retention, bytes: usize, now: u32, evicted: &mut Evicted<u64>) {
    let expected = stream.newest() + 1;
    let offset = stream.append(bounds, Seconds::new(now), evicted, |_, offset| (offset, bytes));
    assert_eq!(offset, expected);
}

/// Returns the offsets of the kept messages.
fn kept(stream: &Stream<u64>) -> Vec<u64> {
    let kept: Vec<u64> = stream.messages(..).map(|(offset, _)| offset).collect();
    assert!(stream.messages(..).all(|(offset, message)| offset == *message));
    assert_eq!(kept.len(), stream.len());
    kept
}

#[test]
fn a_new_stream_stands_before_its_first_message() {
    let stream = Stream::<u64>::new(Epoch::from_bits(1));
    assert_eq!((stream.newest(), stream.oldest(), stream.len(), stream.bytes()), (0, 1, 0, 0));
    assert_eq!(stream.position(5), Position { epoch: Epoch::from_bits(1), offset: 0, time: 5 });
    assert_eq!((stream.message(0), stream.message(1), stream.heap_bytes()), (None, None, 0));
}

#[test]
fn each_bound_evicts_with_its_reason() {
    let (mut stream, mut evicted) = (Stream::new(Epoch::from_bits(1)), Evicted::new());
    let bounds = bounds(3, 100, 10);
    (1..=4).for_each(|now| append(&mut stream, &bounds, 10, now, &mut evicted));
    assert_eq!(kept(&stream), [2, 3, 4]);
    assert!(evicted.messages().eq(&[1]));
    append(&mut stream, &bounds, 85, 5, &mut evicted);
    assert_eq!((kept(&stream), stream.bytes()), (vec![4, 5], 95));
    // A message lives for its `ttl`, and up to a second longer.
    stream.expire(10, Seconds::new(14), &mut evicted);
    assert_eq!(kept(&stream), [4, 5]);
    stream.expire(10, Seconds::new(15), &mut evicted);
    assert_eq!(kept(&stream), [5]);
    append(&mut stream, &bounds, 5, 15, &mut evicted);
    assert_eq!(kept(&stream), [5, 6]);
    assert!(evicted.messages().eq(&[1, 2, 3, 4]));
    let counts = EvictionReason::ALL.map(|reason| (reason.as_str(), evicted.count(reason)));
    assert_eq!(counts, [("messages", 2), ("bytes", 1), ("ttl", 1), ("budget", 0), ("removed", 0)]);
    evicted.clear();
    assert_eq!((evicted.is_empty(), evicted.count(EvictionReason::Messages)), (true, 0));
}

#[test]
fn a_message_over_the_bounds_leaves_no_hole() {
    let (mut stream, mut evicted) = (Stream::new(Epoch::from_bits(1)), Evicted::new());
    let bounds = bounds(10, 100, 10);
    append(&mut stream, &bounds, 60, 0, &mut evicted);
    append(&mut stream, &bounds, 101, 0, &mut evicted);
    assert_eq!((stream.newest(), stream.oldest()), (2, 3));
    assert!(evicted.messages().eq(&[1, 2]));
    append(&mut stream, &bounds, 100, 0, &mut evicted);
    append(&mut stream, &bounds, usize::MAX, 0, &mut evicted);
    assert_eq!((stream.newest(), stream.len()), (4, 0));
    // A rule that was changed to keep nothing.
    append(&mut stream, &super::Retention { messages: 0, ..bounds }, 1, 0, &mut evicted);
    assert_eq!((stream.newest(), stream.len(), evicted.count(EvictionReason::Bytes)), (5, 0, 5));
}

#[test]
fn an_emptied_stream_has_another_epoch_and_goes_on() {
    let (mut stream, mut evicted) = (Stream::new(Epoch::from_bits(1)), Evicted::new());
    append(&mut stream, &bounds(10, 100, 10), 1, 0, &mut evicted);
    for random in [2, 2, 2] {
        let before = stream.epoch();
        stream.clear(random, &mut evicted);
        assert_ne!(stream.epoch(), before);
        assert_eq!((stream.newest(), stream.len()), (1, 0));
    }
    append(&mut stream, &bounds(10, 100, 10), 1, 0, &mut evicted);
    assert_eq!(kept(&stream), [2]);
}

#[test]
fn a_restored_stream_continues_its_offsets() {
    let predecessor = Predecessor { epoch: Epoch::from_bits(1), newest: 40 };
    let messages = (38..=40).map(|offset| Restored { message: offset, bytes: 5, at: Seconds::new(0) });
    let mut stream = Stream::restore(Epoch::from_bits(2), 40, Some(predecessor), messages);
    assert_eq!((kept(&stream), stream.bytes()), (vec![38, 39, 40], 15));
    assert_eq!(stream.predecessor(), Some(&predecessor));
    append(&mut stream, &bounds(2, 100, 10), 5, 0, &mut Evicted::new());
    assert_eq!(kept(&stream), [40, 41]);
    // More messages than offsets cannot be right; the newest ones stay.
    let messages = (1..=3).map(|message| Restored { message, bytes: 5, at: Seconds::new(0) });
    let stream = Stream::<u64>::restore(Epoch::from_bits(2), 2, None, messages);
    assert_eq!((stream.oldest(), stream.message(1), stream.message(2)), (1, Some(&2), Some(&3)));
}

#[test]
fn messages_are_read_from_both_ends() {
    let (mut stream, mut evicted) = (Stream::new(Epoch::from_bits(1)), Evicted::new());
    (0..6).for_each(|_| append(&mut stream, &bounds(4, 100, 10), 1, 0, &mut evicted));
    let from = |offset| stream.messages(offset..).map(|(offset, _)| offset).collect::<Vec<_>>();
    assert_eq!((from(0), from(5), from(6)), (vec![3, 4, 5, 6], vec![5, 6], vec![6]));
    assert_eq!((from(7), from(u64::MAX)), (vec![], vec![]));
    let within = |from, to| stream.messages(from..=to).map(|(offset, _)| offset).collect::<Vec<_>>();
    assert_eq!((within(0, 4), within(4, 5), within(6, u64::MAX)), (vec![3, 4], vec![4, 5], vec![6]));
    assert_eq!((within(0, 2), within(7, 9), within(5, 4)), (vec![], vec![], vec![]));
    assert!(stream.messages(..5).rev().map(|(offset, _)| offset).eq([4, 3]));
    assert!(stream.messages(4..).rev().map(|(offset, _)| offset).eq([6, 5, 4]));
    assert_eq!((stream.message(2), stream.message(3), stream.message(7)), (None, Some(&3), None));
}

/// A message of the model: bytes and time.
#[derive(Debug, Clone, Copy)]
struct Published {
    bytes: usize,
    at: u32,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The kept messages are the longest end of all published messages that was always within the
    /// bounds, for bounds that change too.
    #[test]
    fn the_stream_agrees_with_a_list_of_all_messages(
        steps in proptest::collection::vec((0..4_u8, 0..60_usize, 0..4_u32, 1..20_u32), 1..300),
        max_bytes in 20..200_u32,
        ttl in 1..15_u32,
    ) {
        let (mut stream, mut evicted) = (Stream::new(Epoch::from_bits(1)), Evicted::new());
        let mut published = Vec::<Published>::new();
        let (mut oldest, mut now) = (0, 0);
        for (step, bytes, pause, messages) in steps {
            now += pause;
            let bounds = bounds(messages, max_bytes, ttl);
            let is_append = step > 0;
            if is_append {
                published.push(Published { bytes, at: now });
                append(&mut stream, &bounds, bytes, now, &mut evicted);
            } else {
                stream.expire(ttl, Seconds::new(now), &mut evicted);
            }
            let holds = |from: usize| {
                let kept = &published[from..];
                let is_young = kept.iter().all(|message| now - message.at <= ttl);
                let bytes: usize = kept.iter().map(|message| message.bytes).sum();
                is_young && (!is_append || kept.len() <= messages as usize && bytes <= max_bytes as usize)
            };
            oldest = (oldest..=published.len()).find(|&from| holds(from)).unwrap_or(published.len());
            let expected: Vec<u64> = (oldest as u64 + 1..=published.len() as u64).collect();
            prop_assert_eq!(kept(&stream), expected);
            let bytes: usize = published[oldest..].iter().map(|message| message.bytes).sum();
            prop_assert_eq!(stream.bytes() as usize, bytes);
            let each = 2 * size_of::<crate::ring::Slot<u64>>() + 7;
            prop_assert_eq!(stream.charge(7), (bytes + each * stream.len()) as u64);
        }
        let mut left: Vec<_> = evicted.messages().copied().collect();
        left.extend(kept(&stream));
        prop_assert_eq!(left, (1..=published.len() as u64).collect::<Vec<_>>());
    }
}
