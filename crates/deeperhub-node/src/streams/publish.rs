//! Publishes to topics with history.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use deeperhub_history::{Budget, Cursor, Delivery as DeliveryPolicy, OnceKey, RuleId, Seconds, Stream};
use deeperhub_listener::Multicast;
use deeperhub_protocol::message::{ServerMessage, StreamMessage};
use deeperhub_protocol::{Epoch, ErrorCode, GapReason, Position, Topic};
use deeperhub_router::{Outgoing, Published, Reach, TopicView};

use super::kept::{KeptStream, NoStream, Remains, StreamStripe};
use super::{HubShard, StreamRouter, Streams};
use crate::connection_id::ConnectionId;
use crate::delivery::{Delivery, Sequenced};
use crate::planted::planted;
use crate::trace::ActiveSpan;
use crate::trace::fan_out::PublishStamp;

/// A publish that a client may repeat.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Once<'a> {
    pub(crate) user: Option<&'a str>,
    /// Text that the client chose for this publish.
    pub(crate) text: &'a str,
}

/// Answer to a publish with `once`.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnceAnswer {
    offset: u64,
    time: u64,
    subscribers: u64,
}

/// Arguments of a publish to a topic with history.
#[derive(Debug)]
pub(crate) struct StreamPublish<'a> {
    pub(crate) topic: &'a Topic<'a>,
    pub(crate) message: &'a StreamMessage<'a>,
    pub(crate) once: Option<Once<'a>>,
    /// Publisher, if it is excluded from its own message.
    pub(crate) excluded: Option<ConnectionId>,
    pub(crate) source: Option<u64>,
    pub(crate) is_observed: bool,
    pub(crate) span: Option<&'a ActiveSpan>,
    pub(crate) published_at: Instant,
}

/// Reason why nothing was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublishRefusal {
    /// The topic's rule has as many streams as it may have, and all of them have subscribers.
    TooManyTopics,
}

impl PublishRefusal {
    pub(crate) const fn code(self) -> ErrorCode {
        match self {
            Self::TooManyTopics => ErrorCode::TooManyTopics,
        }
    }

    /// Returns the text for the publisher.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::TooManyTopics => "too many topics with history are in use; try again later",
        }
    }

    /// Returns the time after which the publisher should try again.
    pub(crate) const fn retry_after_ms(self) -> u64 {
        match self {
            Self::TooManyTopics => 10_000,
        }
    }
}

/// Result of an attempt under the lock.
enum Attempt {
    /// The message was appended, at this position.
    Appended(Position),
    /// The same publish has this answer already.
    Repeated(Position, u64),
    NoStream(NoStream),
}

impl Streams {
    /// Appends a message to the stream of its topic and pushes it to the workers. `rule` is the
    /// topic's rule. Returns `None` if the topic has no rule any more.
    ///
    /// # Errors
    ///
    /// Returns [`PublishRefusal`] if the topic can have no stream.
    pub(crate) fn publish(
        &self,
        router: &StreamRouter,
        shard: Option<&mut HubShard>,
        publish: &StreamPublish<'_>,
        rule: (&Arc<Budget>, RuleId),
    ) -> Result<Option<(Published, Position)>, PublishRefusal> {
        let mut shard = shard;
        let mut has_made_room = false;
        loop {
            let (published, attempt) = self.attempt(router, shard.as_deref_mut(), publish, rule);
            match attempt {
                Attempt::Appended(position) => return Ok(Some((published, position))),
                Attempt::Repeated(position, subscribers) => {
                    return Ok(Some((Published { subscribers, ..published }, position)));
                }
                Attempt::NoStream(NoStream::NoRule) => return Ok(None),
                Attempt::NoStream(NoStream::TooMany(rule)) => {
                    if has_made_room || !self.make_room(router, rule) {
                        return Err(PublishRefusal::TooManyTopics);
                    }
                    has_made_room = true;
                }
            }
        }
    }

    fn attempt(
        &self,
        router: &StreamRouter,
        shard: Option<&mut HubShard>,
        publish: &StreamPublish<'_>,
        rule: (&Arc<Budget>, RuleId),
    ) -> (Published, Attempt) {
        let now = self.clock.seconds(publish.published_at);
        let time = publish.message.time;
        let unsealed = publish.message.encode();
        let unsealed = match publish.excluded {
            Some(_) => unsealed.excluding_publisher(),
            None => unsealed,
        };
        let mut remains = Remains::default();
        let mut once_key = None;
        let prepare = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
            let id = match stripe.find_or_open(topic, kept, rule, now, &mut remains) {
                Ok(id) => id,
                Err(no_stream) => return (None, Attempt::NoStream(no_stream)),
            };
            if let Some(once) = publish.once
                && let Some(epoch) = stripe.table.get(id).map(Stream::epoch)
            {
                match self.check_once(topic.name(), epoch, once, now) {
                    Ok(key) => once_key = Some(key),
                    Err(OnceAnswer { offset, time, subscribers }) => {
                        let position = Position { epoch, offset, time };
                        return (None, Attempt::Repeated(position, subscribers));
                    }
                }
            }
            let mut sealed = None;
            let appended = stripe.table.append(id, now, &mut remains.evicted, |epoch, offset| {
                let frame = unsealed.seal(epoch, offset, None);
                let (kept, bytes) = (frame.keep(), self.charge(frame.len()));
                sealed = Some(frame);
                (kept, bytes)
            });
            let (Some(appended), Some(frame)) = (appended, sealed) else {
                return (None, Attempt::NoStream(NoStream::NoRule));
            };
            remains.is_over_budget = appended.is_over_budget;
            let (epoch, offset) = (appended.epoch, appended.offset);
            if let Some(key) = once_key {
                // Patterns are counted after the publish.
                self.remember_once(key, OnceAnswer { offset, time, subscribers: topic.subscribers() }, now);
            }
            let rules = stripe.table.budget().rules();
            let policy = stripe.table.rule(id).and_then(|rule| Some(rules.get(rule)?.policy()));
            let sequenced = Sequenced {
                topic: Arc::clone(topic.name()),
                before: Cursor::new(epoch, offset - 1),
                may_suspend: policy.is_some_and(|policy| policy.delivery() != DeliveryPolicy::Close),
                is_gap: false,
            };
            let bytes = frame.len();
            // Each worker has its own reference count, so that workers do not contend for one cache
            // line. The first worker gets that of the frame itself.
            let (content, mut first) = (frame.keep(), Some(frame));
            let make = move || Delivery {
                frame: Multicast::new(first.take().unwrap_or_else(|| content.to_frame())),
                excluded: publish.excluded,
                topic: publish.is_observed.then(|| Arc::clone(&sequenced.topic)),
                stamp: PublishStamp::new(publish.published_at, publish.span),
                sequenced: Some(sequenced.clone()),
            };
            let outgoing = Outgoing { bytes, make, reach: Reach::Matching };
            (Some(outgoing), Attempt::Appended(Position { epoch, offset, time }))
        };
        let (published, attempt) = match shard {
            Some(shard) => shard.publish_kept(publish.topic, publish.source, prepare),
            None => router.publish_kept(publish.topic, publish.source, prepare),
        };
        if let (Some(key), Attempt::Appended(Position { offset, time, .. })) = (once_key, &attempt) {
            let subscribers = published.subscribers;
            self.remember_once(key, OnceAnswer { offset: *offset, time: *time, subscribers }, now);
        }
        self.finish(router, remains, now);
        (published, attempt)
    }

    /// Returns the bytes that a kept frame is charged: its length, and half of it for its compressed
    /// form if clients may compress.
    fn charge(&self, len: usize) -> usize {
        match self.compression_threshold {
            Some(threshold) if len >= threshold => len + len / 2,
            _ => len,
        }
    }

    /// Returns the key of a publish, or the answer if it was published before.
    fn check_once(
        &self,
        topic: &str,
        epoch: Epoch,
        once: Once<'_>,
        now: Seconds,
    ) -> Result<OnceKey, OnceAnswer> {
        let mut window = self.once.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = if planted!(OnceInWrongEpoch) { Epoch::from_bits(0) } else { epoch };
        let key = window.key(topic, epoch, once.user, once.text);
        window.get(&key, now).map_or(Ok(key), |answer| Err(*answer))
    }

    fn remember_once(&self, key: OnceKey, answer: OnceAnswer, now: Seconds) {
        if planted!(OnceForgotten) {
            return;
        }
        self.once.lock().unwrap_or_else(PoisonError::into_inner).insert(key, answer, now);
    }

    /// Empties the stream of a topic, starts a new epoch, and tells its subscribers. Does nothing if
    /// the topic has no stream.
    pub(crate) fn clear(&self, router: &StreamRouter, topic: &Topic<'_>) {
        let at = self.clock.now();
        let (now, time) = (self.clock.seconds(at), self.clock.unix_ms(at));
        let mut remains = Remains::default();
        let clear = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
            let Some(id) = stripe.find(kept) else { return (None, ()) };
            let Some(before) =
                stripe.table.get(id).map(|stream| Cursor::new(stream.epoch(), stream.newest()))
            else {
                return (None, ());
            };
            if !stripe.table.clear(id, fastrand::u64(..), now, &mut remains.evicted) {
                return (None, ());
            }
            let Some(stream) = stripe.table.get(id) else { return (None, ()) };
            let position = stream.position(time);
            let gap =
                ServerMessage::Gap { topic: topic.name(), from: None, position, reason: GapReason::Epoch };
            let (frame, name) = (gap.to_frame(), Arc::clone(topic.name()));
            let bytes = frame.len();
            let make = move || Delivery {
                frame: Multicast::new(frame.fork()),
                excluded: None,
                topic: None,
                stamp: PublishStamp::new(at, None),
                sequenced: Some(Sequenced {
                    topic: Arc::clone(&name),
                    before,
                    may_suspend: true,
                    is_gap: true,
                }),
            };
            let outgoing = Outgoing { bytes, make, reach: Reach::Topic };
            (Some(outgoing).filter(|_| !planted!(ClearNotTold)), ())
        };
        router.publish_kept(topic, None, clear);
        self.finish(router, remains, now);
    }
}
