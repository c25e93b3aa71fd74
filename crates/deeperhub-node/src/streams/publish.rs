//! Publishes to topics with history.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use deeperhub_history::{
    Acknowledge, Budget, Cursor, Delivery as DeliveryPolicy, OnceKey, Policy, RuleId, Seconds, Stream,
};
use deeperhub_listener::Multicast;
use deeperhub_protocol::message::StreamMessage;
use deeperhub_protocol::{ClientId, Epoch, ErrorCode, Position, Topic};
use deeperhub_router::{Outgoing, Published, Reach, TopicView};

use super::disk::StoredMessage;
use super::kept::{KeptStream, NoStream, Remains, StreamStripe};
use super::stored::StoreRefused;
use super::{HubShard, StreamRouter, Streams, Ticket};
use crate::connection_id::ConnectionId;
use crate::delivery::{Delivery, Sequenced};
use crate::planted::planted;
use crate::stream_counts::StreamContent;
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
    ticket: Option<Ticket>,
}

/// Place of a message that was published to a topic with history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) position: Position,
    /// Place on the way to the disk, if the publisher is answered when the message is there.
    pub(crate) ticket: Option<Ticket>,
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
    /// `published_at` in the time of streams.
    pub(crate) now: Seconds,
}

/// Reason why nothing was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublishRefusal {
    /// The topic's rule has as many streams as it may have, and all of them have subscribers.
    TooManyTopics,
    /// The store of the history takes nothing now.
    Unavailable,
    /// The cluster's store accepts messages of at most this many bytes.
    TooLarge { limit: usize },
}

impl PublishRefusal {
    pub(crate) const fn code(self) -> ErrorCode {
        match self {
            Self::TooManyTopics => ErrorCode::TooManyTopics,
            Self::Unavailable => ErrorCode::Unavailable,
            Self::TooLarge { .. } => ErrorCode::InvalidMessage,
        }
    }

    /// Returns the text for the publisher.
    pub(crate) fn text(self) -> Cow<'static, str> {
        match self {
            Self::TooManyTopics => "too many topics with history are in use; try again later".into(),
            Self::Unavailable => "the history store is unavailable now; try again later".into(),
            Self::TooLarge { limit } => format!(
                "the message is too large for the cluster's history store; send one of at most {limit} bytes"
            )
            .into(),
        }
    }

    /// Returns the key of the publish that is at fault.
    pub(crate) const fn field(self) -> Option<&'static str> {
        match self {
            Self::TooManyTopics | Self::Unavailable => None,
            Self::TooLarge { .. } => Some("message"),
        }
    }

    /// Returns the time after which the publisher should try again, if that can help.
    pub(crate) const fn retry_after_ms(self) -> Option<u64> {
        match self {
            Self::TooManyTopics => Some(10_000),
            Self::Unavailable => Some(STORE_RETRY_MS),
            Self::TooLarge { .. } => None,
        }
    }
}

/// Time after which a publisher should try again if the store takes nothing.
pub(crate) const STORE_RETRY_MS: u64 = 1000;

/// Result of an attempt under the lock.
enum Attempt {
    /// The message was appended.
    Appended(Appended),
    /// The same publish has this answer already, with this number of subscribers.
    Repeated(Appended, u64),
    NoStream(NoStream),
    /// The store does not take the message.
    Refused,
}

impl Streams {
    /// Appends a message to the stream of its topic and pushes it to the workers. `rule` is the
    /// topic's rule. Returns `None` if the topic has no rule any more.
    ///
    /// # Errors
    ///
    /// Returns [`PublishRefusal`] if the topic can have no stream, or if the store takes nothing.
    pub(crate) fn publish(
        &self,
        router: &StreamRouter,
        shard: Option<&mut HubShard>,
        publish: &StreamPublish<'_>,
        rule: (&Arc<Budget>, RuleId),
    ) -> Result<Option<(Published, Appended)>, PublishRefusal> {
        let mut shard = shard;
        let attempt =
            self.with_room(router, || match self.attempt(router, shard.as_deref_mut(), publish, rule) {
                (_, Attempt::NoStream(no_stream)) => Err(no_stream),
                (published, Attempt::Appended(appended)) => Ok(Some((published, appended))),
                (published, Attempt::Repeated(appended, subscribers)) => {
                    Ok(Some((Published { subscribers, ..published }, appended)))
                }
                (_, Attempt::Refused) => Ok(None),
            });
        match attempt {
            Ok(Some(appended)) => Ok(Some(appended)),
            Ok(None) | Err(NoStream::Cold) => Err(PublishRefusal::Unavailable),
            Err(NoStream::NoRule) => Ok(None),
            Err(NoStream::TooMany(_)) => Err(PublishRefusal::TooManyTopics),
        }
    }

    fn attempt(
        &self,
        router: &StreamRouter,
        shard: Option<&mut HubShard>,
        publish: &StreamPublish<'_>,
        rule: (&Arc<Budget>, RuleId),
    ) -> (Published, Attempt) {
        let (now, time) = (publish.now, publish.message.time);
        let unsealed = publish.message.encode();
        let unsealed = match publish.excluded {
            Some(_) => unsealed.excluding_publisher(),
            None => unsealed,
        };
        let mut remains = Remains::default();
        let mut once_key = None;
        let is_only_worker = router.shards() == 1;
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
                    Err(OnceAnswer { offset, time, subscribers, ticket }) => {
                        let position = Position { epoch, offset, time };
                        return (None, Attempt::Repeated(Appended { position, ticket }, subscribers));
                    }
                }
            }
            let Ok(stored) = stripe.stored_stream(id) else { return (None, Attempt::Refused) };
            let mut sealed = None;
            let seal = |epoch, offset, policy: &Policy| {
                let content = unsealed.seal_kept(epoch, offset, None);
                let (kept, bytes) = (content.clone(), self.charge(content.len()));
                let mut ticket = None;
                if let (Some(disk), Some(stream)) = (&self.disk, stored) {
                    let is_kept = u32::try_from(bytes).is_ok_and(|bytes| bytes <= policy.history_bytes());
                    ticket = Some(if is_kept && policy.keeps_history() {
                        disk.append(stream, (offset, time), &publish.stored())?
                    } else {
                        disk.skip_to(stream, offset)?
                    });
                }
                let waits = policy.acknowledge() == Acknowledge::Disk;
                let may_suspend = policy.delivery() != DeliveryPolicy::Close;
                sealed = Some((content, may_suspend, ticket.filter(|_| waits)));
                Ok::<_, StoreRefused>((kept, bytes))
            };
            let Ok(appended) = stripe.table.try_append(id, now, &mut remains.evicted, seal) else {
                return (None, Attempt::Refused);
            };
            let (Some(appended), Some((content, may_suspend, ticket))) = (appended, sealed) else {
                return (None, Attempt::NoStream(NoStream::NoRule));
            };
            remains.is_over_budget = appended.is_over_budget;
            let (epoch, offset) = (appended.epoch, appended.offset);
            if let Some(key) = once_key {
                // Patterns are counted after the publish.
                let subscribers = topic.subscribers();
                self.remember_once(key, OnceAnswer { offset, time, subscribers, ticket }, now);
            }
            let sequenced = Sequenced {
                topic: Arc::clone(topic.name()),
                before: Cursor::new(epoch, offset - 1),
                may_suspend,
                content: StreamContent::Message,
                is_mirrored: false,
                rule_changes: stripe.rule_changes,
            };
            let bytes = content.len();
            let mut parts = Some((content, sequenced));
            let make = move || {
                let parts = if is_only_worker { parts.take() } else { parts.clone() };
                let Some((content, sequenced)) = parts else {
                    unreachable!("one worker gets the message once")
                };
                Delivery {
                    // Each worker has its own reference count, so that workers do not contend for
                    // one cache line.
                    frame: Multicast::new(content.into_frame()),
                    excluded: publish.excluded,
                    topic: publish.is_observed.then(|| Arc::clone(&sequenced.topic)),
                    stamp: PublishStamp::new(publish.published_at, publish.span),
                    sequenced: Some(sequenced),
                }
            };
            let outgoing = Outgoing { bytes, make, reach: Reach::Matching };
            let position = Position { epoch, offset, time };
            (Some(outgoing), Attempt::Appended(Appended { position, ticket }))
        };
        let (published, attempt) = match shard {
            Some(shard) => shard.publish_kept(publish.topic, publish.source, prepare),
            None => router.publish_kept(publish.topic, publish.source, prepare),
        };
        if let (Some(key), Attempt::Appended(Appended { position, ticket })) = (once_key, &attempt) {
            let Position { offset, time, .. } = *position;
            let (subscribers, ticket) = (published.subscribers, *ticket);
            self.remember_once(key, OnceAnswer { offset, time, subscribers, ticket }, now);
        }
        self.finish(router, remains, now);
        (published, attempt)
    }

    /// Returns the bytes that a kept frame is charged: its length, and half of it for its compressed
    /// form if clients may compress.
    pub(crate) fn charge(&self, len: usize) -> usize {
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
}

impl<'a> StreamPublish<'a> {
    /// Returns the message as the store keeps it.
    fn stored(&self) -> StoredMessage<'a> {
        StoredMessage {
            excludes_publisher: self.excluded.is_some(),
            from: self.message.from.map(ClientId::as_str),
            payload: self.message.message.as_str(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_too_large_is_not_tried_again() {
        let refusal = PublishRefusal::TooLarge { limit: 1_047_552 };
        assert_eq!((refusal.code(), refusal.field()), (ErrorCode::InvalidMessage, Some("message")));
        assert!(refusal.text().contains("at most 1047552 bytes"), "{}", refusal.text());
        assert_eq!(refusal.retry_after_ms(), None);
        assert_eq!(PublishRefusal::Unavailable.retry_after_ms(), Some(STORE_RETRY_MS));
    }
}
