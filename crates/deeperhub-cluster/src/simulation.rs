//! The driver's side of a [`Broker`] without threads and sockets: a simulation takes what a node
//! has queued, and answers it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use deeperhub_protocol::Topic;
use tokio::sync::oneshot;

use crate::batch::{Destination, Outbound};
use crate::broker::{Broker, ClusterState};
use crate::config::{BrokerUrl, Config};
use crate::envelope::STAMP_BYTES;
use crate::queue::Lane;
use crate::store::{
    AppendNumber, ReadError, Request, ResetStream, StorePosition, StoredEnvelope, StreamLimits, StreamRange,
    StreamRead, StreamTop,
};

/// Bytes of a batch.
const BATCH_BYTES: usize = 4096;

/// Way of an answer to the node.
pub type Reply<T> = oneshot::Sender<Result<T, ReadError>>;

/// The driver of a simulated node.
#[derive(Debug)]
pub struct SimulatedDriver {
    broker: Broker,
}

/// A message on its way to the store.
#[derive(Debug, Clone)]
pub struct QueuedAppend {
    pub number: AppendNumber,
    pub topic: String,
    pub limits: StreamLimits,
    pub known: Option<StorePosition>,
    /// User and text of `once`.
    pub once: Option<(String, String)>,
    /// Time that the node has written into the message, which JetStream keeps.
    pub time: u64,
    envelope: Bytes,
    stamp: usize,
}

/// A request to the store.
#[derive(Debug)]
pub enum StoreRequest {
    Streams {
        reads: Vec<StreamRead>,
        reply: Reply<Vec<Result<StreamRange, ReadError>>>,
    },
    Tops {
        topics: Vec<Topic<'static>>,
        remember_ms: Option<u64>,
        reply: Reply<Vec<StreamTop>>,
    },
    Reset {
        reset: ResetStream,
        /// The envelope that tells the other nodes, without its first fields.
        envelope: Vec<u8>,
        stamp: usize,
        reply: Reply<StorePosition>,
    },
}

/// Subscriptions that a node adds and removes.
#[derive(Debug, Default)]
pub struct InterestChanges {
    pub subscribe: Vec<Arc<str>>,
    pub unsubscribe: Vec<Arc<str>>,
}

impl SimulatedDriver {
    /// Creates the driver of a node that is not connected.
    #[must_use]
    pub fn new(node: &str, incarnation: u64) -> Self {
        let config = Config::new(BrokerUrl::simulated());
        Self { broker: Broker::new(config, node.to_owned(), incarnation, "0") }
    }

    /// Returns the node's handle.
    #[must_use]
    pub fn broker(&self) -> Broker {
        self.broker.clone()
    }

    /// Notes that the node has joined the cluster.
    pub fn connect(&self) {
        self.broker.0.interests.reset();
        self.broker.0.requests_to_store.open();
        self.broker.0.set_state(ClusterState::Up);
    }

    /// Notes that the connection is lost. Requests that wait fail.
    pub fn disconnect(&self) {
        self.broker.0.requests_to_store.close();
        let error = "simulated".to_owned();
        self.broker.0.set_state(ClusterState::Disconnected { error });
    }

    /// Takes the next appends of the queue. `time` is that of the node's clock.
    #[must_use]
    pub fn take_appends(&self, time: u64) -> Vec<QueuedAppend> {
        let batch = self.broker.0.queue.take(Lane::Data, BATCH_BYTES);
        let append = |outbound: Outbound<'_>| {
            let Destination::Append(target) = outbound.to else { return None };
            let topic = outbound.envelope.get(target.topic..target.topic + target.topic_len)?;
            let once = target.once.as_ref();
            Some(QueuedAppend {
                number: target.number,
                topic: String::from_utf8_lossy(topic).into_owned(),
                limits: target.limits,
                known: target.known,
                once: once.map(|once| (once.user.to_string(), once.text.to_string())),
                time,
                stamp: target.stamp,
                envelope: Bytes::copy_from_slice(outbound.envelope),
            })
        };
        batch.iter().filter_map(append).collect()
    }

    /// Takes the requests that may be answered now.
    #[must_use]
    pub fn take_requests(&self, now: Instant) -> Vec<StoreRequest> {
        let shared = &self.broker.0;
        let requests = shared.requests_to_store.take(shared.interests.confirmed(), now);
        let convert = |request| match request {
            Request::Streams { reads, reply } => StoreRequest::Streams { reads, reply },
            Request::Tops { topics, remember_ms, reply } => StoreRequest::Tops { topics, remember_ms, reply },
            Request::Reset { reset, envelope, stamp, reply } => {
                StoreRequest::Reset { reset, envelope, stamp, reply }
            }
        };
        requests.into_iter().map(convert).collect()
    }

    /// Returns the number that [`confirm`](Self::confirm) takes when the changes which are taken
    /// next are made.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.broker.0.interests.requested()
    }

    /// Takes the changes of subscriptions that are due.
    #[must_use]
    pub fn take_interest(&self, now: Instant) -> InterestChanges {
        let mut all = InterestChanges::default();
        loop {
            let changes = self.broker.0.interests.take(now);
            all.subscribe.extend(changes.subscribe);
            all.unsubscribe.extend(changes.unsubscribe);
            if !changes.has_more {
                return all;
            }
        }
    }

    /// Notes that the broker has made the changes.
    pub fn confirm(&self, requested: u64) {
        self.broker.0.interests.confirm(requested);
    }
}

impl QueuedAppend {
    /// Returns the bytes that name the message: those before the fields of the store.
    #[must_use]
    pub fn identity(&self) -> &[u8] {
        self.envelope.get(..self.stamp).unwrap_or_default()
    }

    /// Returns the node's incarnation, and the sequence of the message.
    #[must_use]
    pub fn origin(&self) -> (u64, u64) {
        let number = |at: usize| {
            let bytes = self.envelope.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_be_bytes(bytes.unwrap_or_default())
        };
        (number(2), number(10))
    }

    /// Returns the message as the store keeps it.
    #[must_use]
    pub fn stored(&self, position: StorePosition, previous: u64, time: u64) -> Bytes {
        let mut bytes = self.envelope.to_vec();
        let fields = [position.epoch, position.offset, previous, time].map(u64::to_be_bytes).concat();
        if let Some(place) = bytes.get_mut(self.stamp..self.stamp + STAMP_BYTES) {
            place.copy_from_slice(&fields);
        }
        bytes.into()
    }
}

/// Fills in the fields of an envelope that tells of a new stream.
pub fn stamp_reset(envelope: &mut [u8], stamp: usize, epoch: u64, time: u64) {
    if let Some(place) = envelope.get_mut(stamp..stamp + 16) {
        place.copy_from_slice(&[epoch, time].map(u64::to_be_bytes).concat());
    }
}

/// Returns a stored message as a part of an answer.
#[must_use]
pub fn stored_envelope(bytes: Bytes, topic: &Topic<'_>, epoch: u64) -> Option<StoredEnvelope> {
    StoredEnvelope::parse(bytes, topic, epoch).map(|(envelope, _)| envelope)
}
