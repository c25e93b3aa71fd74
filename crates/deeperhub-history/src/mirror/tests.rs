use super::*;
use crate::{Evicted, Retention, Seconds};

const BOUNDS: Retention = Retention { messages: 100, bytes: 10_000, ttl_seconds: 60 };
const MAX_PENDING: usize = 10_000;

/// A mirror with its stream. Steps are applied and described.
struct Fixture {
    mirror: Mirror<u64>,
    stream: Stream<u64>,
}

fn stored(prev: u64, offset: u64) -> StoredMessage<u64> {
    StoredMessage { offset, prev, message: offset, bytes: 10, at: Seconds::new(0), is_duplicate: false }
}

fn answer(epoch: u64, top: u64, floor: u64, offsets: impl IntoIterator<Item = u64>) -> StreamRead<u64> {
    let messages = offsets.into_iter().map(|offset| stored(offset - 1, offset)).collect();
    StreamRead { epoch, top, floor, whole_to: 0, messages }
}

impl Fixture {
    fn cold() -> Self {
        Self { mirror: Mirror::new(7), stream: Stream::new(Epoch::from_bits(0)) }
    }

    /// Returns a settled mirror that has the messages 1 to `newest` of epoch 5.
    fn settled(newest: u64) -> Self {
        let mut fixture = Self::cold();
        let read = fixture.mirror.on_followed(&fixture.stream).unwrap();
        fixture.read(read, answer(5, newest, 0, 1..=newest));
        assert!(fixture.mirror.is_settled());
        fixture
    }

    /// Describes steps: `e5/0` an epoch, `3` a message, `4<2` one with `prev`, `-5..6 lost` a gap.
    fn apply(&mut self, steps: impl IntoIterator<Item = MirrorStep<u64>>) -> String {
        let mut texts = Vec::new();
        for step in steps {
            texts.push(match &step {
                MirrorStep::NewEpoch { epoch, after } => format!("e{epoch}/{after}"),
                MirrorStep::Missing { from, to, reason } => format!("-{from}..{to} {reason}"),
                MirrorStep::Duplicate { offset } => format!("={offset}"),
                MirrorStep::Message { message, prev } if prev + 1 == message.offset => {
                    message.offset.to_string()
                }
                MirrorStep::Message { message, prev } => format!("{}<{prev}", message.offset),
            });
            self.stream.apply(&BOUNDS, Seconds::new(0), &mut Evicted::new(), step);
        }
        texts.join(" ")
    }

    fn read(&mut self, read: ReadRequest, answer: StreamRead<u64>) -> (String, Option<StorePosition>, bool) {
        let result = self.mirror.on_read(&self.stream, read.number, answer);
        (self.apply(result.steps), result.next.map(|next| next.after.unwrap_or_default()), result.is_behind)
    }

    fn live(&mut self, epoch: u64, prev: u64, offset: u64) -> Result<String, Option<ReadRequest>> {
        match self.mirror.on_live(&self.stream, epoch, stored(prev, offset), MAX_PENDING) {
            LiveResult::Ignored => Ok(String::new()),
            LiveResult::Duplicate(message) => Ok(format!("had {}", message.offset)),
            LiveResult::Apply(step) => Ok(self.apply([step])),
            LiveResult::Waits(read) => Err(read),
        }
    }

    /// Lets a live message come after a hole, and returns the read that fills it.
    fn hole(&mut self, epoch: u64, prev: u64, offset: u64) -> ReadRequest {
        self.live(epoch, prev, offset).unwrap_err().unwrap()
    }
}

const fn at(epoch: u64, offset: u64) -> StorePosition {
    StorePosition { epoch, offset }
}

fn done(steps: &str) -> (String, Option<StorePosition>, bool) {
    (steps.to_owned(), None, false)
}

#[test]
fn a_cold_mirror_reads_after_it_follows() {
    let mut fixture = Fixture::cold();
    assert!(size_of_val(&fixture.mirror) <= 128, "{}", size_of_val(&fixture.mirror));
    assert_eq!(fixture.live(5, 0, 1), Ok(String::new()));
    assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, None), SubscribeCheck::Follow);
    let read = fixture.mirror.on_followed(&fixture.stream).unwrap();
    assert_eq!((read.number, read.after), (7, None));
    assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, None), SubscribeCheck::Wait(None));
    // Live messages wait meanwhile, and the union has no duplicate.
    for offset in [9, 10, 11] {
        assert_eq!(fixture.live(5, offset - 1, offset), Err(None));
    }
    assert_eq!(fixture.read(read, answer(5, 10, 6, 7..=10)), done("e5/6 7 8 9 10 11"));
    assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, None), SubscribeCheck::Ready);
    assert_eq!((fixture.live(5, 11, 12), fixture.mirror.known()), (Ok("12".to_owned()), Some(at(5, 12))));
}

#[test]
fn a_hole_is_filled_once() {
    let mut fixture = Fixture::settled(5);
    let read = fixture.hole(5, 7, 8);
    assert_eq!(read.after, Some(at(5, 5)));
    assert_eq!((fixture.live(5, 9, 10), fixture.live(5, 7, 8)), (Err(None), Err(None)));
    // A late message that follows is applied at once.
    assert_eq!(fixture.live(5, 5, 6), Ok("6".to_owned()));
    assert_eq!(fixture.live(5, 5, 6), Ok("had 6".to_owned()));
    // The answer has more than what waits; what comes after it needs another read.
    assert_eq!(fixture.read(read, answer(5, 8, 0, 6..=8)), ("7 8".to_owned(), Some(at(5, 8)), false));
    let read = ReadRequest { number: read.number + 1, after: None };
    assert_eq!(fixture.read(read, answer(5, 12, 0, 9..=11)), ("9 10 11".to_owned(), Some(at(5, 11)), false));
    let read = ReadRequest { number: read.number + 1, after: None };
    assert_eq!(fixture.read(read, answer(5, 12, 0, [12])), done("12"));
    assert!(fixture.mirror.is_settled() && !fixture.mirror.is_reading());
}

#[test]
fn what_the_store_does_not_have_is_told() {
    let mut fixture = Fixture::settled(5);
    let read = fixture.hole(5, 19, 20);
    let messages = vec![stored(8, 9), stored(9, 10), stored(13, 15)];
    let (steps, next, _) =
        fixture.read(read, StreamRead { epoch: 5, top: 20, floor: 7, whole_to: 0, messages });
    assert_eq!(steps, "-6..7 trimmed -8..8 lost 9 10 -11..13 lost 15<13");
    // An answer without messages says that there are none up to the top.
    let read = ReadRequest { number: read.number + 1, after: next };
    assert_eq!(fixture.read(read, answer(5, 20, 7, [])), done("-16..19 lost 20"));
    assert!(fixture.mirror.is_settled());
}

#[test]
fn a_first_message_without_prev_follows_the_floor() {
    for (floor, steps) in
        [(5, "9<5"), (0, "9<5"), (7, "-6..7 trimmed 9<7"), (8, "-6..8 trimmed 9"), (99, "-6..8 trimmed 9")]
    {
        let mut fixture = Fixture::settled(5);
        let read = fixture.hole(5, 8, 9);
        let messages = vec![stored(0, 9)];
        assert_eq!(
            fixture.read(read, StreamRead { epoch: 5, top: 9, floor, whole_to: 0, messages }),
            done(steps),
            "{floor}"
        );
    }
}

#[test]
fn a_newer_epoch_replaces_the_stream() {
    let mut fixture = Fixture::settled(5);
    let read = fixture.hole(5, 6, 7);
    // A new epoch comes live while the read is under way, so its answer is of no use.
    assert_eq!(fixture.live(8, 1, 2), Err(None));
    assert_eq!((fixture.live(5, 7, 8), fixture.live(5, 5, 6)), (Ok(String::new()), Ok(String::new())));
    assert_eq!(fixture.read(read, answer(5, 7, 0, 6..=7)), (String::new(), Some(at(8, 0)), false));
    let read = ReadRequest { number: read.number + 1, after: None };
    assert_eq!(fixture.read(read, answer(8, 2, 0, [1])), ("e8/0 1 2".to_owned(), None, false));
    // The store was emptied.
    assert_eq!(
        fixture.mirror.on_top(&fixture.stream, 9, 0),
        CheckResult::Read(Some(ReadRequest { number: 10, after: Some(at(9, 0)) }))
    );
    let read = ReadRequest { number: 10, after: None };
    assert_eq!(fixture.read(read, answer(9, 0, 0, [])), done("e9/0"));
    assert_eq!((fixture.live(8, 2, 3), fixture.live(9, 0, 1)), (Ok(String::new()), Ok("1".to_owned())));
}

#[test]
fn an_answer_of_a_newer_epoch_forgets_what_waits() {
    let mut fixture = Fixture::settled(50);
    let read = fixture.hole(5, 51, 52);
    assert_eq!(fixture.read(read, answer(6, 3, 0, 1..=2)), ("e6/0 1 2".to_owned(), Some(at(6, 2)), false));
    assert_eq!(fixture.mirror.pending_bytes(), 0);
}

#[test]
fn a_duplicate_of_the_store_is_bridged() {
    let mut fixture = Fixture::settled(2);
    let duplicate = StoredMessage { is_duplicate: true, ..stored(2, 3) };
    let live = fixture.mirror.on_live(&fixture.stream, 5, duplicate.clone(), MAX_PENDING);
    assert!(matches!(live, LiveResult::Apply(MirrorStep::Duplicate { offset: 3 })));
    assert_eq!(
        (fixture.apply([MirrorStep::Duplicate { offset: 3 }]), fixture.live(5, 3, 4)),
        ("=3".into(), Ok("4<2".into()))
    );
    let mut fixture = Fixture::settled(2);
    let read = fixture.hole(5, 3, 4);
    let read_answer = StreamRead { messages: vec![duplicate, stored(3, 4)], ..answer(5, 4, 0, []) };
    assert_eq!(fixture.read(read, read_answer), done("=3 4<2"));
}

#[test]
fn messages_that_do_not_fit_are_read_again() {
    let mut fixture = Fixture::settled(5);
    let read = fixture.hole(5, 6, 7);
    let bytes = fixture.mirror.pending_bytes();
    for offset in 8..12 {
        let live = fixture.mirror.on_live(&fixture.stream, 5, stored(offset - 1, offset), 2 * bytes);
        assert_eq!(live, LiveResult::Waits(None));
        assert!(fixture.mirror.pending_bytes() <= 2 * bytes);
    }
    // A message over the whole limit pushes out no other.
    let large = StoredMessage { bytes: usize::MAX, ..stored(11, 12) };
    assert_eq!(fixture.mirror.on_live(&fixture.stream, 5, large, 2 * bytes), LiveResult::Waits(None));
    assert_eq!((fixture.mirror.pending_bytes(), fixture.mirror.known()), (2 * bytes, Some(at(5, 12))));
    assert_eq!(fixture.read(read, answer(5, 7, 0, 6..=7)), ("6 7 8".to_owned(), Some(at(5, 8)), false));
}

#[test]
fn the_tail_check_needs_two_looks() {
    let mut fixture = Fixture::settled(5);
    let check = |fixture: &mut Fixture, top| fixture.mirror.on_top(&fixture.stream, 5, top);
    assert_eq!(check(&mut fixture, 5), CheckResult::InSync);
    assert_eq!(check(&mut fixture, 7), CheckResult::Differs);
    // The message that explains the difference has come, and others are under way.
    assert_eq!((fixture.live(5, 5, 6), fixture.live(5, 6, 7)), (Ok("6".into()), Ok("7".into())));
    assert_eq!(check(&mut fixture, 8), CheckResult::Differs);
    let CheckResult::Read(Some(read)) = check(&mut fixture, 8) else { panic!("no read") };
    assert_eq!(read.after, Some(at(5, 7)));
    assert_eq!(check(&mut fixture, 9), CheckResult::Read(None));
    assert_eq!(fixture.read(read, answer(5, 9, 0, 8..=9)), done("8 9"));
    // An own message whose live copy is lost.
    fixture.mirror.on_appended(at(5, 10));
    assert_eq!((check(&mut fixture, 10), fixture.mirror.known()), (CheckResult::Differs, Some(at(5, 10))));
    assert!(matches!(check(&mut fixture, 10), CheckResult::Read(Some(_))));
}

#[test]
fn a_store_that_lost_its_tail_is_behind() {
    let mut fixture = Fixture::settled(9);
    assert_eq!(fixture.mirror.on_top(&fixture.stream, 5, 7), CheckResult::Differs);
    // The answer can be older than what came meanwhile.
    assert_eq!(fixture.live(5, 9, 10), Ok("10".to_owned()));
    assert_eq!(fixture.mirror.on_top(&fixture.stream, 5, 7), CheckResult::Differs);
    assert_eq!(fixture.mirror.on_top(&fixture.stream, 5, 7), CheckResult::Behind);
    assert_eq!(fixture.mirror.on_top(&fixture.stream, 0, 0), CheckResult::Behind);
    assert!(fixture.mirror.is_settled());
    // The store has compared itself with what the mirror knows.
    let CheckResult::Read(Some(read)) = fixture.mirror.on_top(&fixture.stream, 6, 0) else {
        panic!("no read")
    };
    assert_eq!(fixture.read(read, answer(6, 0, 0, [])), done("e6/0"));
}

#[test]
fn a_read_that_is_behind_twice_gives_what_is_left() {
    let mut fixture = Fixture::settled(5);
    let twice = |fixture: &mut Fixture, read: ReadRequest, answers: [StreamRead<u64>; 2]| {
        let [first, second] = answers;
        let (steps, next, is_behind) = fixture.read(read, first);
        assert!(next.is_some() && is_behind);
        let read = ReadRequest { number: read.number + 1, after: next };
        (steps, fixture.read(read, second))
    };
    let behind = |steps: &str| (steps.to_owned(), None, true);
    // The replica that answered first was late.
    let read = fixture.hole(5, 6, 7);
    let answers = [answer(5, 5, 0, []), answer(5, 7, 0, 6..=7)];
    assert_eq!(twice(&mut fixture, read, answers), (String::new(), done("6 7")));
    let read = fixture.hole(5, 10, 11);
    let read_on = fixture.read(read, answer(5, 9, 0, [8]));
    assert_eq!(read_on, ("8".to_owned(), Some(at(5, 8)), true));
    let read = ReadRequest { number: read.number + 1, after: read_on.1 };
    assert_eq!(
        twice(&mut fixture, read, [answer(5, 9, 0, [9]), answer(5, 9, 0, [])]),
        ("9".to_owned(), behind("-10..10 lost 11"))
    );
    // The store went back to an older epoch.
    let read = fixture.hole(8, 2, 3);
    let answers = [answer(5, 9, 0, []), answer(5, 9, 0, [])];
    assert_eq!(twice(&mut fixture, read, answers.clone()), (String::new(), behind("e8/2 3")));
    assert_eq!(fixture.mirror.known(), Some(at(8, 3)));
    // All that waited was too large.
    let live = fixture.mirror.on_live(&fixture.stream, 9, stored(1, 2), 0);
    let LiveResult::Waits(Some(read)) = live else { panic!("no read") };
    assert_eq!(twice(&mut fixture, read, answers), (String::new(), behind("e9/2")));
}

#[test]
fn a_store_without_an_epoch_is_asked_again() {
    let mut fixture = Fixture::cold();
    let read = fixture.mirror.on_followed(&fixture.stream).unwrap();
    assert_eq!(fixture.read(read, answer(0, 0, 0, [])), (String::new(), None, true));
    assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, None), SubscribeCheck::Wait(None));
    let read = fixture.mirror.retry(&fixture.stream).unwrap();
    assert_eq!(fixture.read(read, answer(4, 0, 0, [])), done("e4/0"));
}

#[test]
fn failed_reads_are_tried_again_by_the_caller() {
    let mut fixture = Fixture::settled(5);
    let read = fixture.hole(5, 6, 7);
    fixture.mirror.on_read_failed(read.number + 1);
    assert!(fixture.mirror.is_reading());
    fixture.mirror.on_read_failed(read.number);
    assert_eq!(fixture.live(5, 7, 8), Err(None));
    let again = fixture.mirror.retry(&fixture.stream).unwrap();
    assert_eq!((again.after, fixture.mirror.retry(&fixture.stream)), (Some(at(5, 5)), None));
    // The first answer comes after all.
    assert_eq!(fixture.read(read, answer(5, 7, 0, 6..=7)), done(""));
    assert_eq!(fixture.read(again, answer(5, 8, 0, 6..=7)), done("6 7 8"));
    assert_eq!(fixture.mirror.retry(&fixture.stream), None);
}

#[test]
fn after_a_disconnect_a_live_message_waits_for_the_comparison_of_the_one_before_it() {
    let mut fixture = Fixture::settled(5);
    fixture.mirror.on_disconnected();
    assert_eq!(fixture.live(5, 5, 6), Err(None));
    let read = fixture.mirror.on_followed(&fixture.stream).unwrap();
    assert_eq!(read.after, Some(at(5, 5)));
    assert_eq!(fixture.read(read, answer(5, 6, 0, [6])), done("6"));
    assert_eq!(fixture.live(5, 6, 7), Ok("7".to_owned()));
}

#[test]
fn after_a_disconnect_the_first_check_decides() {
    let mut fixture = Fixture::settled(5);
    let read = fixture.hole(5, 6, 7);
    fixture.mirror.on_disconnected();
    assert!(!fixture.mirror.is_reading() && fixture.mirror.is_unchecked());
    assert_eq!(fixture.read(read, answer(5, 7, 0, 6..=7)), done(""));
    let read = fixture.mirror.on_followed(&fixture.stream).unwrap();
    assert_eq!(fixture.read(read, answer(5, 7, 0, 6..=7)), done("6 7"));
    assert!(!fixture.mirror.is_unchecked());
    // A settled mirror answers during an outage.
    fixture.mirror.on_disconnected();
    assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, None), SubscribeCheck::Ready);
    assert_eq!((fixture.mirror.on_followed(&fixture.stream), fixture.mirror.is_unchecked()), (None, true));
    assert_eq!(fixture.mirror.on_top(&fixture.stream, 5, 6), CheckResult::Behind);
    let CheckResult::Read(Some(read)) = fixture.mirror.on_top(&fixture.stream, 5, 8) else {
        panic!("no read")
    };
    assert_eq!(fixture.read(read, answer(5, 8, 0, [8])), done("8"));
    fixture.mirror.on_disconnected();
    assert_eq!(fixture.mirror.on_followed(&fixture.stream), None);
    // The store can have lost messages meanwhile, and given their offsets to others.
    let CheckResult::Read(Some(read)) = fixture.mirror.on_top(&fixture.stream, 5, 8) else {
        panic!("no read")
    };
    assert_eq!((read.after, fixture.mirror.is_unchecked()), (Some(at(5, 8)), true));
    assert_eq!(fixture.read(read, answer(5, 8, 0, [8])), done(""));
    assert!(!fixture.mirror.is_unchecked());
    assert_eq!(fixture.mirror.on_top(&fixture.stream, 5, 8), CheckResult::InSync);
}

#[test]
fn a_topic_without_followers_is_a_cache() {
    let mut fixture = Fixture::settled(5);
    let read = fixture.hole(5, 6, 7);
    fixture.mirror.on_lost_interest();
    assert!(fixture.mirror.is_cold() && fixture.mirror.pending_bytes() == 0);
    assert_eq!(
        (fixture.live(5, 5, 6), fixture.read(read, answer(5, 7, 0, 6..=7))),
        (Ok(String::new()), done(""))
    );
    assert_eq!(fixture.mirror.on_top(&fixture.stream, 5, 99), CheckResult::InSync);
    let read = fixture.mirror.on_followed(&fixture.stream).unwrap();
    assert_eq!(read.after, Some(at(5, 5)));
    assert_eq!(fixture.read(read, answer(5, 12, 10, 11..=12)), done("-6..10 trimmed 11 12"));
    assert_eq!(
        fixture.stream.messages(..).map(|(offset, _)| offset).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 11, 12]
    );
}

#[test]
fn a_subscriber_that_knows_more_waits_for_a_read() {
    let mut fixture = Fixture::settled(5);
    let position = |epoch, offset| Some((Epoch::from_bits(epoch), offset));
    for known in [None, position(5, 5), position(5, 0), position(4, 99)] {
        assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, known), SubscribeCheck::Ready);
    }
    let wait = fixture.mirror.on_subscribe(&fixture.stream, position(5, 7));
    let SubscribeCheck::Wait(Some(read)) = wait else { panic!("{wait:?}") };
    assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, position(6, 0)), SubscribeCheck::Wait(None));
    assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, position(5, 5)), SubscribeCheck::Ready);
    assert_eq!(fixture.read(read, answer(5, 7, 0, 6..=7)), done("6 7"));
    assert_eq!(fixture.mirror.on_subscribe(&fixture.stream, position(5, 7)), SubscribeCheck::Ready);
    assert!(matches!(
        fixture.mirror.on_subscribe(&fixture.stream, position(6, 0)),
        SubscribeCheck::Wait(Some(_))
    ));
}

#[test]
fn a_stream_that_was_emptied_here_is_read_again() {
    let mut fixture = Fixture::settled(5);
    fixture.stream.clear(99, &mut Evicted::new());
    assert!(matches!(fixture.mirror.on_subscribe(&fixture.stream, None), SubscribeCheck::Wait(Some(_))));
    let read = ReadRequest { number: 8, after: None };
    assert_eq!(fixture.read(read, answer(5, 6, 0, 1..=6)), done("e5/0 1 2 3 4 5 6"));
    // An answer that starts after what is gone is of no use.
    let read = fixture.hole(5, 7, 8);
    fixture.stream.clear(99, &mut Evicted::new());
    assert_eq!(fixture.read(read, answer(5, 8, 0, 7..=8)), (String::new(), Some(at(0, 0)), false));
    let read = ReadRequest { number: read.number + 1, after: None };
    assert_eq!(fixture.read(read, answer(5, 8, 4, 5..=8)), done("e5/4 5 6 7 8"));
}

#[test]
fn values_that_no_store_gives_do_no_harm() {
    let mut fixture = Fixture::settled(5);
    for (epoch, prev, offset) in [(0, 5, 6), (5, 0, 0), (5, 5, u64::MAX), (9, 0, u64::MAX)] {
        assert_eq!(fixture.live(epoch, prev, offset), Ok(String::new()));
    }
    fixture.mirror.on_appended(at(5, u64::MAX));
    assert_eq!(fixture.mirror.known(), Some(at(5, 5)));
    // A `prev` that is not below the offset counts as the offset before.
    let read = fixture.hole(5, 99, 9);
    let mut messages: Vec<_> = [8, 7, 6, 6, 7, 8].iter().map(|offset| stored(99, *offset)).collect();
    messages.push(stored(0, 0));
    messages.push(stored(0, u64::MAX));
    let read_answer = StreamRead { epoch: 5, top: u64::MAX, floor: u64::MAX, whole_to: 0, messages };
    let result = fixture.mirror.on_read(&fixture.stream, read.number, read_answer);
    fixture.apply(result.steps);
    assert!(fixture.stream.newest() <= StorePosition::MAX_OFFSET);
}
