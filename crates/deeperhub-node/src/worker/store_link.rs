//! The link from a worker to the store of the history.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use ahash::RandomState;
use deeperhub_cluster::AppendNumber;
use deeperhub_protocol::Position;
use tokio::sync::mpsc;

use super::parked::ParkedClients;
use crate::connection_id::ConnectionId;
use crate::streams::{HistoryNotice, StoreNotice, Streams, Ticket};

/// A `published` that waits until its message is on the disk.
#[derive(Debug)]
pub(crate) struct StoredReply {
    pub(crate) ticket: Ticket,
    pub(crate) connection: ConnectionId,
    /// ID of the client's message, as JSON.
    pub(crate) id: Box<str>,
    pub(crate) topic: Box<str>,
    pub(crate) subscribers: u64,
    pub(crate) position: Option<Position>,
    pub(crate) since: Instant,
}

/// A `published` that waits until the cluster's store has appended its message.
#[derive(Debug)]
pub(crate) struct AppendReply {
    pub(crate) connection: ConnectionId,
    /// ID of the client's message, as JSON.
    pub(crate) id: Box<str>,
    pub(crate) topic: Box<str>,
    pub(crate) subscribers: u64,
    pub(crate) since: Instant,
}

/// A worker's side of the store.
#[derive(Debug)]
pub(crate) struct StoreLink {
    pub(super) notices: mpsc::UnboundedReceiver<StoreNotice>,
    /// A page of a history that waits until the messages before it are delivered.
    pub(super) blocked_history: Option<Box<HistoryNotice>>,
    /// In the order of the publishes.
    pub(super) replies: VecDeque<StoredReply>,
    pub(super) appends: HashMap<AppendNumber, AppendReply, RandomState>,
    /// Connections that wait for the store.
    pub(super) parked: ParkedClients,
}

impl StoreLink {
    /// Connects a worker that starts. Returns `None` without a store.
    pub(super) fn open(streams: &Streams, worker: u16) -> Option<Box<Self>> {
        let notices = match (&streams.disk, &streams.cluster) {
            (Some(disk), _) => disk.attach(worker),
            (None, Some(cluster)) => cluster.attach(worker),
            (None, None) => return None,
        };
        // Fixed seeds are safe: clients cannot choose the numbers.
        let appends = HashMap::with_hasher(RandomState::with_seeds(9, 10, 11, 12));
        let (replies, parked) = (VecDeque::new(), ParkedClients::default());
        Some(Box::new(Self { notices, blocked_history: None, replies, appends, parked }))
    }
}
