//! Reads of the history of topics.

use std::time::Instant;

use deeperhub_cluster::Appended;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::{EncodedDelivery, HistoryRequest};
use deeperhub_protocol::{Epoch, Position, Topic};
use tokio::sync::oneshot;

use super::NodeHandle;
use crate::hub::Hub;
use crate::mirrors;
use crate::streams::{HistoryRead, Ticket, TopicHistory};
use crate::types::{Delivered, StoreUnavailable};

/// Kept messages of a topic.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct History {
    /// Position of the newest message; `None` if the topic has no history.
    pub position: Option<Position>,
    /// The messages.
    pub messages: Vec<KeptMessage>,
    /// Offset with which to continue; `None` if there are no more messages.
    pub next: Option<u64>,
}

/// A message of a topic with history. Clones share the memory.
#[derive(Debug, Clone)]
pub struct KeptMessage(KeptFrame);

impl KeptMessage {
    /// Returns `None` if the frame is not a delivery.
    pub(crate) fn new(frame: KeptFrame) -> Option<Self> {
        EncodedDelivery::parse(frame.as_bytes()).is_some().then_some(Self(frame))
    }

    fn delivery(&self) -> Option<EncodedDelivery<'_>> {
        EncodedDelivery::parse(self.0.as_bytes())
    }

    /// Returns the `data` of the delivery as clients get it: an object with `topic`, `message`, the
    /// position and the other keys.
    #[must_use]
    pub fn data(&self) -> &str {
        self.delivery().map_or("", |delivery| delivery.data().as_str())
    }

    /// Returns the published message as JSON text.
    #[must_use]
    pub fn message(&self) -> &str {
        self.delivery().map_or("", |delivery| delivery.payload().as_str())
    }

    /// Returns the client ID of the publisher; `None` if a backend published.
    #[must_use]
    pub fn from(&self) -> Option<&str> {
        self.delivery()?.from()
    }

    /// Returns the position.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.delivery()?.position()
    }
}

impl NodeHandle {
    /// Reads kept messages of a topic. A topic without history has none.
    ///
    /// The page ends at the request's limit, or when its messages together are longer than the
    /// longest message that a client may send.
    ///
    /// # Errors
    ///
    /// Returns an error if the messages are not in memory and cannot be read from the store.
    pub async fn history(&self, request: &HistoryRequest<'_>) -> Result<History, StoreUnavailable> {
        let streams = &self.hub.streams;
        let max_bytes = self.hub.limits.load().listener.max_message_bytes;
        let page = match streams.read(&self.hub.router, request, max_bytes) {
            HistoryRead::Page(page) => page,
            HistoryRead::Stored(stored) => {
                let (sender, receiver) = oneshot::channel();
                streams.read_stored(stored, move |page| drop(sender.send(page)));
                let page = tokio::time::timeout(self.hub.config.answer_timeout, receiver).await;
                let Ok(Ok(Ok(page))) = page else { return Err(StoreUnavailable) };
                page
            }
            HistoryRead::InCluster(page) => {
                let (sender, receiver) = oneshot::channel();
                if let Some(store) = &streams.cluster {
                    store.read_page(page, Box::new(move |page| drop(sender.send(page))));
                }
                let page = tokio::time::timeout(self.hub.config.answer_timeout, receiver).await;
                let Ok(Ok(Ok(page))) = page else { return Err(StoreUnavailable) };
                page
            }
        };
        Ok(History {
            position: page.position,
            messages: page.frames.into_iter().filter_map(KeptMessage::new).collect(),
            next: page.next,
        })
    }

    /// Returns the state of a topic's history; `None` if the topic has none, or if nobody used the
    /// topic yet.
    #[must_use]
    pub fn topic_history(&self, topic: &Topic<'_>) -> Option<TopicHistory> {
        self.hub.streams.topic_history(&self.hub.router, topic)
    }

    /// Returns the state of a topic's history like [`topic_history`](Self::topic_history). In a
    /// cluster, asks the store if no client of this node follows the topic.
    ///
    /// # Errors
    ///
    /// Returns an error if the cluster's store does not answer.
    pub async fn read_topic_history(
        &self,
        topic: &Topic<'_>,
    ) -> Result<Option<TopicHistory>, StoreUnavailable> {
        let Hub { streams, router, config, .. } = &*self.hub;
        match &streams.cluster {
            Some(store) if streams.is_unread(router, topic) => {
                let read = mirrors::topic_history(&self.hub, store, topic);
                let read = tokio::time::timeout(config.answer_timeout, read).await;
                read.ok().and_then(Result::ok).ok_or(StoreUnavailable)
            }
            _ => Ok(self.topic_history(topic)),
        }
    }

    /// Empties the history of a topic. The topic's stream continues with a new epoch, and its
    /// subscribers are told so. With a store, the call waits until the disk has forgotten the
    /// messages, too.
    ///
    /// # Errors
    ///
    /// Returns an error if the store takes nothing now. If it fails after it took the call, the
    /// messages may come back at the next start.
    pub async fn clear_history(&self, topic: &Topic<'_>) -> Result<(), StoreUnavailable> {
        let streams = &self.hub.streams;
        if let Some(store) = &streams.cluster {
            let clear = mirrors::clear(&self.hub, store, topic);
            let cleared = tokio::time::timeout(self.hub.config.answer_timeout, clear).await;
            return if cleared == Ok(true) { Ok(()) } else { Err(StoreUnavailable) };
        }
        streams.clear(&self.hub.router, topic).map_err(|_| StoreUnavailable)?;
        self.hub.watchers.wake(topic.as_str());
        match &streams.disk {
            Some(disk) => self.wait_stored(disk.queued()).await,
            None => Ok(()),
        }
    }

    /// Waits until a published message is stored: on the disk for good, if its topic's rule has
    /// `ack=disk`, or in the cluster's store. Returns at once for other messages. Returns the result
    /// of the publish with the message's position.
    ///
    /// # Errors
    ///
    /// Returns an error if the store does not take the message within
    /// [`answer_timeout`](crate::Config::answer_timeout). It may be stored later. With a disk,
    /// subscribers have got it.
    pub async fn stored(&self, delivered: &Delivered) -> Result<Delivered, StoreUnavailable> {
        if let (Some(number), Some(store)) = (delivered.append, &self.hub.streams.cluster) {
            let outcome = store.wait(number, self.hub.config.answer_timeout).await;
            let Some(Ok(Appended { position, time, .. })) = outcome else { return Err(StoreUnavailable) };
            let position =
                Position { epoch: Epoch::from_bits(position.epoch), offset: position.offset, time };
            return Ok(Delivered { position: Some(position), append: None, ..*delivered });
        }
        match delivered.ticket {
            Some(ticket) => {
                let since = Instant::now();
                self.wait_stored(ticket).await?;
                self.hub.streams.disk.iter().for_each(|disk| disk.record_stored(since.elapsed()));
                Ok(*delivered)
            }
            None => Ok(*delivered),
        }
    }

    /// Returns `true` if the cluster's store has refused a published message. Nobody gets it, and it
    /// can be published again.
    #[must_use]
    pub fn was_refused(&self, delivered: &Delivered) -> bool {
        let store = self.hub.streams.cluster.as_ref();
        delivered.append.zip(store).is_some_and(|(number, store)| store.was_refused(number))
    }

    async fn wait_stored(&self, ticket: Ticket) -> Result<(), StoreUnavailable> {
        let Some(disk) = &self.hub.streams.disk else { return Ok(()) };
        disk.request_sync();
        let is_stored = disk.wait(ticket, self.hub.config.answer_timeout).await;
        is_stored.then_some(()).ok_or(StoreUnavailable)
    }
}
