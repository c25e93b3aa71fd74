//! Sparse streams against a list of everything that happened.

use super::*;

/// Kind of an offset of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Message {
        bytes: u32,
        at: u32,
    },
    /// Last offset of a missing range.
    MissingTo(GapReason),
}

#[derive(Debug, Clone, Copy)]
enum Change {
    /// A message that many offsets after the newest one.
    Append(u64, u32),
    Dense,
    Missing(u64, bool),
    Pass(u64),
    Pause(u32),
    StartEpoch(u64),
    Advance(usize, u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (1..5_u64, 0..40_u32).prop_map(|(distance, bytes)| Change::Append(distance, bytes)),
        1 => (1..5_u64).prop_map(|distance| Change::Append(distance, 101)),
        3 => Just(Change::Dense),
        1 => (1..6_u64, any::<bool>()).prop_map(|(count, is_lost)| Change::Missing(count, is_lost)),
        1 => (1..3_u64).prop_map(Change::Pass),
        2 => (0..5_u32).prop_map(Change::Pause),
        1 => (0..50_u64).prop_map(Change::StartEpoch),
        16 => (0..SUBSCRIBERS, 1..6_u8).prop_map(|(number, steps)| Change::Advance(number, steps)),
    ]
}

const SAMPLE: Delivery = Delivery::Sample { every: Duration::from_secs(1) };

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

/// Everything that happened in the present epoch.
#[derive(Debug, Default)]
struct Model {
    epoch: u64,
    items: Vec<(u64, Item)>,
    newest: u64,
    /// Offset up to which everything is gone.
    floor: u64,
    /// Offset at which the epoch started.
    start: u64,
    now: u32,
}

impl Model {
    fn messages(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        let is_message = |item: &Item| matches!(item, Item::Message { .. });
        self.items.iter().filter(move |(_, item)| is_message(item)).map(|(offset, _)| *offset)
    }

    fn kept(&self) -> Vec<u64> {
        self.messages().filter(|offset| *offset > self.floor).collect()
    }

    /// Returns the offset at which a live subscriber stands.
    fn live(&self) -> u64 {
        self.items.last().map_or(0, |(offset, _)| *offset).max(self.floor)
    }

    /// Evicts the oldest messages until the kept ones hold the bounds.
    fn evict(&mut self, bounds: &Retention, is_append: bool) {
        let kept = || self.items.iter().filter(|(offset, _)| *offset > self.floor);
        let kept: Vec<(u64, u32, u32)> = kept()
            .filter_map(|(offset, item)| match item {
                Item::Message { bytes, at } => Some((*offset, *bytes, *at)),
                Item::MissingTo(_) => None,
            })
            .collect();
        let holds = |rest: &[(u64, u32, u32)]| {
            let bytes: u32 = rest.iter().map(|(_, bytes, _)| bytes).sum();
            let is_young = rest.iter().all(|(_, _, at)| self.now - at <= bounds.ttl_seconds);
            is_young && (!is_append || rest.len() <= bounds.messages as usize && bytes <= bounds.bytes)
        };
        let evicted = (0..=kept.len()).find(|evicted| holds(&kept[*evicted..])).unwrap_or(kept.len());
        if let Some((offset, ..)) = evicted.checked_sub(1).and_then(|last| kept.get(last)) {
            self.floor = *offset;
        }
    }

    fn wants(wants_all: bool, offset: u64) -> bool {
        wants_all || !offset.is_multiple_of(3)
    }
}

#[derive(Debug)]
struct Client {
    cursor: Cursor,
    delivery: Delivery,
    wants_all: bool,
    told: u64,
    epoch: Epoch,
    is_closed: bool,
}

impl Client {
    fn new(number: usize, epoch: Epoch) -> Self {
        let (delivery, wants_all) = (DELIVERIES[number / 2], number.is_multiple_of(2));
        Self { cursor: Cursor::new(epoch, 0), delivery, wants_all, told: 0, epoch, is_closed: false }
    }

    /// Takes a step and checks it. Returns `false` if there is none.
    fn step(&mut self, stream: &Stream<u64>, model: &Model) -> bool {
        let wants_all = self.wants_all;
        let wants = |offset: u64| Model::wants(wants_all, offset);
        let left = self.cursor.messages_left(stream, stream.oldest(), self.delivery);
        let step = self.cursor.advance_where(stream, self.delivery, |message| wants(message / 100));
        let wanted_in = |from: u64, to: u64| {
            model.messages().filter(|offset| (from..=to).contains(offset) && wants(*offset)).count()
        };
        let missing_in = |from: u64, to: u64| {
            let is_missing = |(offset, item): &&(u64, Item)| {
                matches!(item, Item::MissingTo(_)) && (from..=to).contains(offset)
            };
            model.items.iter().filter(is_missing).count()
        };
        let (told, skips) = (self.told, self.delivery == SAMPLE);
        match step {
            None => {
                assert_eq!(self.epoch, stream.epoch());
                assert!(!self.cursor.is_behind(stream));
                assert_eq!(wanted_in(told + 1, model.newest), 0, "{self:?} stops early");
                assert!(missing_in(told + 1, model.newest) == 0 || skips, "{self:?} is not told");
                return false;
            }
            Some(Step::Close) => {
                let is_missing = missing_in(told + 1, model.newest) > 0 || told + 1 < stream.oldest();
                assert!(self.delivery == Delivery::Close && is_missing, "{self:?}");
                self.is_closed = true;
                return false;
            }
            Some(Step::Stored { .. }) => panic!("there is no store"),
            Some(Step::Message { offset, prev, message }) => {
                assert_eq!((prev.unwrap_or(offset - 1), *message), (told, offset * 100), "{self:?}");
                assert!(model.kept().contains(&offset) && wants(offset) && prev != Some(offset - 1));
                let is_silent = wanted_in(told + 1, offset - 1) == 0 && missing_in(told + 1, offset - 1) == 0;
                assert!(is_silent || skips, "{self:?} skips before {offset}");
                if self.wants_all && self.delivery == Delivery::Lossless {
                    assert_eq!(left as usize, wanted_in(offset, model.newest));
                }
                self.told = offset;
            }
            Some(Step::Gap(Gap { epoch, from: None, to, reason })) => {
                assert_eq!((reason, epoch), (GapReason::Epoch, stream.epoch()));
                assert_ne!(epoch, self.epoch);
                assert!((stream.oldest() - 1..=stream.newest()).contains(&to));
                (self.epoch, self.told) = (epoch, to);
            }
            Some(Step::Gap(Gap { epoch, from: Some(from), to, reason })) => {
                assert_eq!((from, epoch), (told + 1, self.epoch));
                assert_ne!(self.delivery, Delivery::Close);
                assert!(to >= from && to <= model.newest);
                let left = model.kept().into_iter().filter(|offset| *offset > to).count();
                match (reason, self.delivery) {
                    (GapReason::Trimmed, _) if to + 1 == stream.oldest() => {}
                    (GapReason::Dropped, Delivery::DropOldest { keep }) => assert_eq!(left, keep as usize),
                    (GapReason::Conflated, Delivery::Latest) => {
                        assert_eq!(wanted_in(to + 1, model.newest), 1, "{self:?}");
                        assert!(wanted_in(from, to) > 0 || from < stream.oldest() || !self.wants_all);
                    }
                    (reason, _) => {
                        assert!(model.items.contains(&(to, Item::MissingTo(reason))), "{self:?} {reason}");
                        assert_eq!(wanted_in(from, to), 0, "{self:?}");
                    }
                }
                self.told = to;
            }
        }
        assert_eq!((self.cursor.epoch(), self.cursor.offset()), (self.epoch, self.told));
        true
    }
}

/// Applies a change to the stream and to the model.
fn apply(change: Change, stream: &mut Stream<u64>, model: &mut Model, bounds: &Retention) {
    let (now, mut evicted) = (Seconds::new(model.now), Evicted::new());
    match change {
        Change::Append(distance, bytes) => {
            let offset = model.newest + distance;
            model.items.push((offset, Item::Message { bytes, at: model.now }));
            model.newest = offset;
            model.evict(bounds, true);
            assert!(stream.append_at(bounds, now, &mut evicted, stored(offset, bytes as usize, model.now)));
        }
        Change::Dense => {
            model.newest += 1;
            model.items.push((model.newest, Item::Message { bytes: 1, at: model.now }));
            model.evict(bounds, true);
            stream.append(bounds, now, &mut evicted, |_, offset| (offset * 100, 1));
        }
        Change::Missing(count, is_lost) => {
            let reason = if is_lost { GapReason::Lost } else { GapReason::Trimmed };
            model.newest += count;
            if let Some((_, Item::MissingTo(last))) = model.items.last()
                && *last == reason
            {
                model.items.pop();
            }
            model.items.push((model.newest, Item::MissingTo(reason)));
            stream.skip_missing(model.newest, reason, &mut evicted);
        }
        Change::Pass(count) => {
            model.newest += count;
            stream.pass_to(model.newest);
        }
        Change::Pause(seconds) => {
            model.now += seconds;
            model.evict(bounds, false);
            stream.expire(bounds.ttl_seconds, Seconds::new(model.now), &mut evicted);
        }
        Change::StartEpoch(after) => {
            *model = Model {
                epoch: model.epoch + 1,
                newest: after,
                floor: after,
                start: after,
                items: Vec::new(),
                now: model.now,
            };
            stream.start_epoch(Epoch::from_bits(model.epoch), after, &mut evicted);
        }
        Change::Advance(..) => {}
    }
}

fn check(stream: &Stream<u64>, model: &Model) {
    assert_eq!(kept(stream), model.kept());
    assert_eq!((stream.newest(), stream.live_offset()), (model.newest, model.live()));
    assert_eq!(stream.oldest(), model.floor + 1);
    for offset in 0..=model.newest + 2 {
        assert_eq!(stream.message(offset).is_some(), model.kept().contains(&offset));
        let start = judged(stream, offset);
        // Nothing after a good position is missing, and no message after it was evicted.
        let is_gone = |(gone, item): &(u64, Item)| {
            *gone > offset && (*gone <= model.floor || matches!(item, Item::MissingTo(_)))
        };
        let is_inside = offset <= model.newest && offset >= model.start;
        let is_good = is_inside && !model.items.iter().any(is_gone);
        assert_eq!(start.recovery == Some(Ok(())), is_good, "{offset}: {model:?}");
        if is_good {
            assert_eq!(start.replay as usize, model.kept().iter().filter(|kept| **kept > offset).count());
        }
    }
    for history in [0, 1, 3, 100] {
        let request = SubscribeRequest { recover: None, history };
        let start = judge(Some(stream), SubscriptionScope::Topic, &request, Delivery::Lossless);
        let mut cursor = start.cursor.unwrap();
        let position = cursor.offset();
        assert_eq!(start.replay as usize, model.kept().len().min(history as usize));
        let mut messages = 0;
        while let Some(step) = cursor.advance(stream, Delivery::Lossless) {
            messages += u64::from(matches!(step, Step::Message { .. }));
        }
        assert_eq!(messages, start.replay, "from {position}: {model:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens, the stream keeps what the model keeps, a position is good if and only if
    /// everything after it is kept, and each subscriber is told every offset once.
    #[test]
    fn a_sparse_stream_agrees_with_a_list(
        changes in proptest::collection::vec(change(), 1..120),
        messages in 1..12_u32,
    ) {
        let bounds = Retention { messages, bytes: 100, ttl_seconds: 10 };
        let (mut stream, mut model) = (Stream::new(Epoch::from_bits(0)), Model::default());
        let mut clients: Vec<_> = (0..SUBSCRIBERS).map(|number| Client::new(number, stream.epoch())).collect();
        for change in changes {
            apply(change, &mut stream, &mut model, &bounds);
            if let Change::Advance(number, steps) = change {
                let client = &mut clients[number];
                (0..steps).all(|_| !client.is_closed && client.step(&stream, &model));
            } else {
                check(&stream, &model);
            }
        }
        for client in &mut clients {
            while !client.is_closed && client.step(&stream, &model) {}
        }
        prop_assert!(stream.sparse().is_none_or(|sparse| !sparse.is_dense(stream.newest())));
    }
}
