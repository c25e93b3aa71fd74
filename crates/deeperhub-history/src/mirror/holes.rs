//! Tests of mirrors of a store whose offsets have holes.

use super::*;
use crate::{Evicted, GapReason, Retention, Seconds};

const BOUNDS: Retention = Retention { messages: 100, bytes: 10_000, ttl_seconds: 60 };

/// A mirror that follows a topic, and its stream.
struct Follower {
    mirror: Mirror<u64>,
    stream: Stream<u64>,
    read: ReadRequest,
}

fn stored(prev: u64, offset: u64) -> StoredMessage<u64> {
    StoredMessage { offset, prev, message: offset, bytes: 10, at: Seconds::new(0), is_duplicate: false }
}

/// Answer with messages after the floor, of a topic that has no other ones up to the top.
fn answer(top: u64, floor: u64, offsets: &[u64]) -> StreamRead<u64> {
    let mut prev = 0;
    let chained = |&offset| stored(std::mem::replace(&mut prev, offset), offset);
    let messages = offsets.iter().map(chained).collect();
    StreamRead { epoch: 5, top, floor, whole_to: top, messages }
}

impl Follower {
    fn new() -> Self {
        let (mut mirror, stream) = (Mirror::new(0), Stream::new(Epoch::from_bits(0)));
        let read = mirror.on_followed(&stream).unwrap();
        Self { mirror, stream, read }
    }

    /// Answers the read. Returns the gaps that subscribers are told.
    fn answer(&mut self, answer: StreamRead<u64>) -> Vec<(u64, u64, GapReason)> {
        let result = self.mirror.on_read(&self.stream, self.read.number, answer);
        if let Some(next) = result.next {
            self.read = next;
        }
        result.steps.into_iter().filter_map(|step| self.apply(step)).collect()
    }

    fn apply(&mut self, step: MirrorStep<u64>) -> Option<(u64, u64, GapReason)> {
        let gap = match &step {
            MirrorStep::Missing { from, to, reason } => Some((*from, *to, *reason)),
            _ => None,
        };
        self.stream.apply(&BOUNDS, Seconds::new(0), &mut Evicted::new(), step);
        gap
    }

    fn live(&mut self, prev: u64, offset: u64) -> bool {
        match self.mirror.on_live(&self.stream, 5, stored(prev, offset), 1000) {
            LiveResult::Apply(step) => {
                assert_eq!(self.apply(step), None);
                true
            }
            LiveResult::Waits(Some(read)) => {
                self.read = read;
                false
            }
            _ => false,
        }
    }

    fn offsets(&self) -> Vec<u64> {
        self.stream.messages(..).map(|(offset, _)| offset).collect()
    }
}

#[test]
fn offsets_of_other_topics_are_no_losses() {
    let mut follower = Follower::new();
    assert_eq!(follower.answer(answer(80, 40, &[51, 60])), []);
    assert!(follower.mirror.is_settled());
    assert_eq!((follower.offsets(), follower.stream.newest()), (vec![51, 60], 80));
    // Positions from the floor on are good.
    assert_eq!(follower.stream.oldest(), 41);
    assert!(follower.live(60, 90) && follower.live(90, 95));
    // A hole is one of the topic's messages.
    assert!(!follower.live(97, 99));
    assert_eq!(follower.read.after, Some(StorePosition { epoch: 5, offset: 95 }));
    assert_eq!(follower.answer(answer(120, 95, &[97, 99])), []);
    assert_eq!((follower.offsets(), follower.stream.newest()), (vec![51, 60, 90, 95, 97, 99], 120));
}

#[test]
fn a_topic_without_messages_is_good_from_the_floor_on() {
    let mut follower = Follower::new();
    assert_eq!(follower.answer(answer(80, 40, &[])), []);
    assert!(follower.mirror.is_settled());
    assert_eq!((follower.stream.newest(), follower.stream.oldest()), (80, 41));
    assert!(follower.live(0, 81));
}

#[test]
fn what_may_have_been_removed_is_told() {
    let mut follower = Follower::new();
    follower.answer(answer(80, 40, &[60]));
    assert!(!follower.live(85, 99));
    // The message 85 has left the store.
    assert_eq!(follower.answer(answer(99, 90, &[99])), [(61, 90, GapReason::Trimmed)]);
    assert_eq!(follower.offsets(), [60, 99]);
    assert!(follower.mirror.is_settled());
    // The store says that it has all, and lacks one that a later message names.
    assert!(!follower.live(110, 120));
    assert_eq!(follower.answer(answer(120, 99, &[120])), [(100, 110, GapReason::Lost)]);
}

#[test]
fn an_answer_that_is_cut_goes_on_where_it_ends() {
    let mut follower = Follower::new();
    let cut = StreamRead { whole_to: 60, ..answer(80, 40, &[51, 60]) };
    assert_eq!(follower.answer(cut), []);
    assert!(!follower.mirror.is_settled());
    assert_eq!(follower.read.after, Some(StorePosition { epoch: 5, offset: 60 }));
    assert_eq!(follower.answer(answer(80, 60, &[70])), []);
    assert!(follower.mirror.is_settled());
    assert_eq!((follower.offsets(), follower.stream.newest()), (vec![51, 60, 70], 80));
}

#[test]
fn a_quiet_topic_moves_with_its_store() {
    let mut follower = Follower::new();
    assert_eq!(follower.mirror.on_vouched(&follower.stream, 5, 90), None, "the mirror is not settled");
    follower.answer(answer(80, 40, &[60]));
    let vouch = |follower: &mut Follower, epoch, offset| {
        let step = follower.mirror.on_vouched(&follower.stream, epoch, offset);
        step.is_some_and(|step| follower.apply(step).is_none())
    };
    assert!(vouch(&mut follower, 5, 90));
    assert_eq!((follower.stream.newest(), follower.stream.oldest()), (90, 41));
    assert_eq!(follower.mirror.known(), Some(StorePosition { epoch: 5, offset: 90 }));
    // Not back, not in another epoch.
    assert!(!vouch(&mut follower, 5, 90) && !vouch(&mut follower, 5, 85) && !vouch(&mut follower, 6, 99));
    // The next message names the one before it.
    assert!(follower.live(60, 91));
    // Not past a message that waits.
    assert!(!follower.live(95, 99));
    assert!(!vouch(&mut follower, 5, 100));
    follower.mirror.on_disconnected();
    assert!(!vouch(&mut follower, 5, 100));
}
