//! Subscribers in the process of the node.

use std::collections::VecDeque;
use std::sync::Arc;

use deeperhub_history::{self as history, Cursor, Delivery, Gap, Step, SubscriptionScope, judge_within};
use deeperhub_protocol::message::HistoryOrder;
use deeperhub_protocol::{NotRecovered, Position, Topic, TopicError};
use futures_util::future::{Either, select};
use tokio::sync::{Notify, oneshot, watch};

use super::NodeHandle;
use super::history::KeptMessage;
use crate::hub::Hub;
use crate::mirrors::WatchGuard;
use crate::phase::Phase;
use crate::streams::{CurrentStream, NoStream, ReadPurpose, ReadRequest, Remains};
use crate::types::StoreUnavailable;

/// Messages that a subscriber reads at a time.
const MESSAGES_PER_READ: usize = 64;

/// Bytes of messages that a subscriber reads from the store at a time.
const BYTES_PER_READ: usize = 256 * 1024;

/// Place in a topic's stream at which a [`Subscriber`] starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscribeFrom {
    /// After the newest message.
    Newest,
    /// Before the last messages of this number, or before all that are kept.
    Last(u64),
    /// After a position. If messages after it are not kept any more, the subscriber starts after the
    /// newest message; see [`Subscriber::recovery`].
    After(Position),
}

/// Error of a subscribe in the process of the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The topic is invalid.
    #[error("invalid topic {topic:?}")]
    Topic {
        /// The rejected text.
        topic: String,
        /// The rule that the topic breaks.
        source: TopicError,
    },
    /// No rule keeps messages of the topic.
    #[error("the topic has no history: add a rule with `history` for it")]
    NoHistory,
    /// The topic's rule has as many topics as it may have, and all of them have subscribers.
    #[error("too many topics with history are in use: raise `max_streams` of the topic's rule")]
    TooManyTopics,
    /// The node has as many of these subscribers as it may have.
    #[error("too many subscribers in this process: raise `max_local_subscribers`")]
    TooManySubscribers,
    /// The cluster's store cannot be read now.
    #[error(transparent)]
    Unavailable(#[from] StoreUnavailable),
}

/// An event of a [`Subscriber`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StreamEvent {
    /// A message.
    Message(KeptMessage),
    /// Offsets that the subscriber does not get, because the messages are not kept any more, or
    /// because the topic has a new epoch.
    Gap(Gap),
}

/// A subscriber of a topic with history, in the process of the node. It reads from the history at
/// its own speed, so it holds no queue, and it counts as no subscriber of the topic.
///
/// ```
/// # async fn example(hub: deeperhub_node::NodeHandle) -> Result<(), Box<dyn std::error::Error>> {
/// use deeperhub_node::{StreamEvent, SubscribeFrom};
///
/// let mut prices = hub.subscribe("prices.eur", SubscribeFrom::Last(10)).await?;
/// while let Some(event) = prices.next().await {
///     match event {
///         StreamEvent::Message(message) => println!("{}", message.message()),
///         StreamEvent::Gap(gap) => println!("missed messages up to {}", gap.to),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Subscriber {
    hub: Arc<Hub>,
    topic: Topic<'static>,
    start: Position,
    cursor: Cursor,
    recovery: Option<Result<(), NotRecovered>>,
    notify: Arc<Notify>,
    phase: watch::Receiver<Phase>,
    events: VecDeque<StreamEvent>,
    /// Offset before which the store has nothing, although it should.
    lost_before: Option<u64>,
    /// Interest of this node in the topic, if the cluster keeps the stream.
    _watch: Option<WatchGuard>,
}

impl NodeHandle {
    /// Subscribes to a topic with history in this process. In a cluster, waits until the store was
    /// read if no client of this node follows the topic.
    ///
    /// # Errors
    ///
    /// Returns [`SubscribeError`] if the topic is invalid, if it has no history, or if the cluster's
    /// store cannot be read.
    pub async fn subscribe(&self, topic: &str, from: SubscribeFrom) -> Result<Subscriber, SubscribeError> {
        let parsed = Topic::parse(topic.to_owned())
            .map_err(|source| SubscribeError::Topic { topic: topic.to_owned(), source })?;
        let (streams, router) = (&self.hub.streams, &self.hub.router);
        let (budget, rule) = streams.rule(&parsed).ok_or(SubscribeError::NoHistory)?;
        let now = streams.clock.seconds(streams.clock.now());
        let position = match &from {
            SubscribeFrom::After(position) => Some((position.epoch, position.offset)),
            SubscribeFrom::Newest | SubscribeFrom::Last(_) => None,
        };
        let watch = WatchGuard::watch(&self.hub, &parsed)?;
        if let Some(watch) = &watch {
            watch.wait_until_ready(position).await;
        }
        let start = streams.with_room(router, || {
            let mut remains = Remains::default();
            let start = router.update_kept(&parsed, |topic, kept, stripe| {
                let id = stripe.find_or_open(topic, kept, (&*budget, rule), now, &mut remains)?;
                if !stripe.is_ready(id, position) {
                    return Err(NoStream::Cold);
                }
                let current = stripe.current(kept, now, &mut remains).ok_or(NoStream::NoRule)?;
                let CurrentStream { stream, oldest, .. } = current;
                let (epoch, newest) = (stream.epoch(), stream.newest());
                let (recover, history) = match &from {
                    SubscribeFrom::Newest => (None, 0),
                    SubscribeFrom::Last(count) => (None, *count),
                    SubscribeFrom::After(Position { epoch, offset, time }) => {
                        let (offset, time_ms) = (*offset, Some(*time));
                        let is_replaced = streams.is_replaced(stream, (*epoch, offset), *time);
                        let epoch = if is_replaced { "" } else { epoch.as_str() };
                        (Some(history::Recover { epoch, offset, time_ms, partial: false }), 0)
                    }
                };
                let request = history::SubscribeRequest { recover, history };
                let (stream, scope) = (Some((stream, oldest)), SubscriptionScope::Topic);
                let start = judge_within(stream, scope, &request, Delivery::Lossless);
                let cursor = start.cursor.unwrap_or(Cursor::new(epoch, newest));
                Ok((cursor, start.recovery))
            });
            streams.finish(router, remains, now);
            start
        })?;
        let max = self.hub.limits.load().history.max_local_subscribers;
        let notify = self.hub.watchers.add(topic, max).ok_or(SubscribeError::TooManySubscribers)?;
        Ok(Subscriber {
            hub: Arc::clone(&self.hub),
            topic: parsed,
            start: start.0.position(streams.look_ms(streams.clock.now())),
            cursor: start.0,
            recovery: start.1,
            notify,
            phase: self.hub.phase.subscribe(),
            events: VecDeque::new(),
            lost_before: None,
            _watch: watch,
        })
    }
}

impl From<NoStream> for SubscribeError {
    fn from(no_stream: NoStream) -> Self {
        match no_stream {
            NoStream::NoRule => Self::NoHistory,
            NoStream::TooMany(_) => Self::TooManyTopics,
            NoStream::Cold => Self::Unavailable(StoreUnavailable),
        }
    }
}

impl Subscriber {
    /// Returns whether the position of [`SubscribeFrom::After`] was good; `None` for other starts.
    #[must_use]
    pub fn recovery(&self) -> Option<Result<(), NotRecovered>> {
        self.recovery
    }

    /// Returns the position at which the subscriber started: before the first event.
    #[must_use]
    pub fn start(&self) -> Position {
        self.start
    }

    /// Returns the topic.
    #[must_use]
    pub fn topic(&self) -> &Topic<'static> {
        &self.topic
    }

    /// Returns the next event. Returns `None` when the node has stopped.
    ///
    /// The future can be dropped and called again without loss.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            self.read().await;
            if !self.events.is_empty() {
                continue;
            }
            if *self.phase.borrow_and_update() == Phase::Stopped {
                return None;
            }
            let notified = std::pin::pin!(self.notify.notified());
            let changed = std::pin::pin!(self.phase.changed());
            // An error means that the node is gone.
            if let Either::Right((Err(_), _)) = select(notified, changed).await {
                return None;
            }
        }
    }

    /// Reads the next messages.
    async fn read(&mut self) {
        if let Some(request) = self.read_memory() {
            self.read_stored(request).await;
        }
    }

    /// Reads the next messages that are in memory. Returns the read that the next ones need if they
    /// are not.
    fn read_memory(&mut self) -> Option<ReadRequest> {
        let Hub { streams, router, .. } = &*self.hub;
        let now = streams.clock.seconds(streams.clock.now());
        let (cursor, events) = (&mut self.cursor, &mut self.events);
        let lost_before = self.lost_before.take();
        let read = streams.with_stream(router, &self.topic, now, |current| {
            let CurrentStream { stream, oldest, name, .. } = *current;
            let lost_before = lost_before.filter(|_| cursor.epoch() == stream.epoch());
            let gap = lost_before.and_then(|offset| cursor.skip_lost(offset));
            events.extend(gap.map(StreamEvent::Gap));
            while events.len() < MESSAGES_PER_READ {
                match cursor.advance_within(stream, oldest, Delivery::Lossless, |_| true) {
                    Some(Step::Message { message, .. }) => {
                        events.extend(KeptMessage::new(message.clone()).map(StreamEvent::Message));
                    }
                    Some(Step::Gap(gap)) => events.push_back(StreamEvent::Gap(gap)),
                    Some(Step::Stored { from, to }) => {
                        let limit = usize::try_from(to - from + 1).unwrap_or(usize::MAX);
                        return Some(ReadRequest {
                            stream: name.disk?,
                            topic: Arc::clone(&name.topic),
                            epoch: stream.epoch(),
                            from,
                            order: HistoryOrder::Ascending,
                            limit: limit.min(MESSAGES_PER_READ),
                            max_bytes: BYTES_PER_READ,
                        });
                    }
                    Some(Step::Close) | None => break,
                }
            }
            None
        });
        read.flatten().filter(|_| self.events.is_empty())
    }

    /// Reads messages that only the store has. Nothing is lost if the future is dropped, because the
    /// cursor moves at the end.
    async fn read_stored(&mut self, request: ReadRequest) {
        let Some(disk) = &self.hub.streams.disk else { return };
        let to = request.from.saturating_add(request.limit as u64) - 1;
        let (sender, receiver) = oneshot::channel();
        disk.read(request, ReadPurpose::Replay, move |result| drop(sender.send(result)));
        match receiver.await {
            Ok(Ok(frames)) if !frames.is_empty() => {
                for (offset, frame) in frames {
                    self.events.extend(self.cursor.skip_lost(offset).map(StreamEvent::Gap));
                    if self.cursor.pass_stored(offset, true).is_some() {
                        self.events.extend(KeptMessage::new(frame).map(StreamEvent::Message));
                    }
                }
            }
            _ => {
                self.lost_before = Some(to + 1);
                // The next call tells the gap.
                self.notify.notify_one();
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.hub.watchers.remove(self.topic.as_str(), &self.notify);
    }
}
