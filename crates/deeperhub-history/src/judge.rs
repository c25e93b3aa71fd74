//! Where a new subscription starts: the judgement of the position that a client gives back.

use crate::cursor::Cursor;
use crate::policy::Delivery;
use crate::stream::Stream;
use deeperhub_types::NotRecovered;

/// Wishes of a client that subscribes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscribeRequest<'a> {
    /// The position to continue from, if the client has one.
    pub recover: Option<Recover<'a>>,
    /// Number of the last messages that the client wants if there is no position to recover, or if
    /// recovering fails.
    pub history: u64,
}

/// A position that a client gives back to continue from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recover<'a> {
    /// The epoch, as the client wrote it.
    pub epoch: &'a str,
    /// The offset of the last message or position that the client has.
    pub offset: u64,
    /// Time of the position in milliseconds since the Unix epoch, if the client sent it. Streams of
    /// this crate have dense offsets and do not need it.
    pub time_ms: Option<u64>,
    /// `true` if the client wants all that is kept in case it cannot be recovered.
    pub partial: bool,
}

/// How the subscription relates to the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriptionScope {
    /// The client subscribes to the topic, and nothing else of the client matches it.
    Topic,
    /// Another subscription of the client matches the topic already. Its deliveries go on, so there
    /// can be no replay.
    Overlapping,
    /// The client subscribes to a pattern.
    Pattern,
}

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Whether the client's position was good; `None` if it gave none.
    pub recovery: Option<Result<(), NotRecovered>>,
    /// The place of the subscriber before the replay. Its epoch and offset are the position of the
    /// reply. `None` if there is no stream that the subscription could follow.
    pub cursor: Option<Cursor>,
    /// Number of kept messages that come before live ones. If it is not 0, the cursor yields them,
    /// and a gap before them if the delivery skips some.
    pub replay: u64,
}

/// Decides where a subscription starts.
///
/// `stream` is `None` if the topic has no history. A position is good if the stream still has all
/// messages after it, or if there are none, even if nothing is kept. Expired messages count as long
/// as they are kept ([`Stream::expire`]). A position between two messages is as good as one at the
/// first of them.
///
/// A client that is not recovered starts at the newest message, or `history` messages before it.
/// With `partial`, it starts before all that is kept.
///
/// ```
/// use deeperhub_history::{Delivery, Epoch, Evicted, Retention, Seconds, Stream};
/// use deeperhub_history::{NotRecovered, Recover, SubscribeRequest, SubscriptionScope, judge};
///
/// let bounds = Retention { messages: 2, bytes: 1000, ttl_seconds: 60 };
/// let mut stream = Stream::new(Epoch::from_bits(7));
/// for text in ["a", "b", "c"] {
///     stream.append(&bounds, Seconds::new(0), &mut Evicted::new(), |_, _| (text, 1));
/// }
/// let epoch = stream.epoch();
/// let start = |offset| {
///     let recover = Recover { epoch: epoch.as_str(), offset, time_ms: None, partial: false };
///     let request = SubscribeRequest { recover: Some(recover), history: 0 };
///     judge(Some(&stream), SubscriptionScope::Topic, &request, Delivery::Lossless)
/// };
/// assert_eq!((start(1).recovery, start(1).replay), (Some(Ok(())), 2));
/// assert_eq!((start(0).recovery, start(0).replay), (Some(Err(NotRecovered::Trimmed)), 0));
/// ```
#[must_use]
pub fn judge<M>(
    stream: Option<&Stream<M>>,
    scope: SubscriptionScope,
    request: &SubscribeRequest<'_>,
    delivery: Delivery,
) -> Start {
    judge_within(stream.map(|stream| (stream, stream.oldest())), scope, request, delivery)
}

/// Decides where a subscription starts, like [`judge`], with messages that only a store has: those
/// from an offset on ([`Stream::oldest_stored`]).
#[must_use]
pub fn judge_within<M>(
    stream: Option<(&Stream<M>, u64)>,
    scope: SubscriptionScope,
    request: &SubscribeRequest<'_>,
    delivery: Delivery,
) -> Start {
    let refused = |reason| request.recover.map(|_| Err(reason));
    let (stream, oldest) = match (stream, scope) {
        (_, SubscriptionScope::Pattern) => {
            return Start { recovery: refused(NotRecovered::Pattern), cursor: None, replay: 0 };
        }
        (None, _) => return Start { recovery: refused(NotRecovered::NoHistory), cursor: None, replay: 0 },
        (Some((stream, _)), SubscriptionScope::Overlapping) => {
            let cursor = Cursor::new(stream.epoch(), stream.newest());
            return Start { recovery: refused(NotRecovered::Overlap), cursor: Some(cursor), replay: 0 };
        }
        (Some(stream), SubscriptionScope::Topic) => stream,
    };
    let recovery = request.recover.map(|recover| check_position(stream, oldest, &recover));
    let wanted = match (request.recover, recovery) {
        (Some(recover), Some(Ok(()))) => {
            // Skipped messages are told by a gap, since the client knows that it was behind.
            let cursor = Cursor::new(stream.epoch(), recover.offset);
            let replay = cursor.messages_left(stream, oldest, delivery);
            return Start { recovery, cursor: Some(cursor), replay };
        }
        (Some(Recover { partial: true, .. }), _) => u64::MAX,
        _ => request.history,
    };
    // The client starts where the delivery would not skip, because it misses nothing there.
    let replay = wanted.min(stream.count_from(oldest)).min(delivery.max_messages());
    let cursor = Cursor::new(stream.epoch(), stream.position_before_last(replay));
    Start { recovery, cursor: Some(cursor), replay }
}

/// Checks whether the stream, or its store, has all messages after a position.
fn check_position<M>(stream: &Stream<M>, oldest: u64, recover: &Recover<'_>) -> Result<(), NotRecovered> {
    let is_of_predecessor = |recover: &Recover<'_>| {
        stream.predecessor().is_some_and(|predecessor| {
            predecessor.epoch.as_str() == recover.epoch && recover.offset <= predecessor.newest
        })
    };
    if stream.epoch().as_str() != recover.epoch && !is_of_predecessor(recover) {
        Err(NotRecovered::Epoch)
    } else if recover.offset > stream.newest() {
        Err(NotRecovered::Ahead)
    } else if recover.offset < stream.lowest_good(oldest) {
        Err(NotRecovered::Trimmed)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
