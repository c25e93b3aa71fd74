//! Values and errors that a node's handle returns.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use deeperhub_protocol::message::ClusterFault;
use deeperhub_protocol::{ClientId, MessageError, Position, TopicError};
use serde::{Deserialize, Serialize};

use deeperhub_cluster::AppendNumber;

use crate::streams::{PublishRefusal, Ticket};

/// Result of a publish or an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// Subscriptions that matched on this node (publish), or connections on which the operation had
    /// an effect.
    pub count: u64,
    /// Fault that kept the message from other nodes. `None` if it was queued for them, or if there
    /// is no cluster.
    pub cluster: Option<ClusterFault>,
    /// Position of a published message, if its topic has history. In a cluster, it is known once
    /// the message is stored ([`NodeHandle::stored`](crate::NodeHandle::stored)).
    pub position: Option<Position>,
    /// Place of the message on its way to the disk, if the topic's rule has `ack=disk`.
    pub(crate) ticket: Option<Ticket>,
    /// Number of the append to the cluster's store, if the message is on its way there.
    pub(crate) append: Option<AppendNumber>,
}

/// One connection, as an entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientInfo {
    /// Client ID.
    pub client_id: ClientId,
    /// User of the token or certificate. `None` without either.
    pub user: Option<String>,
    /// Topics and patterns that the client is subscribed to.
    pub subscriptions: Vec<String>,
    /// State of the connection. `None` if the client's node is of a version that does not report
    /// it.
    pub connection: Option<ConnectionInfo>,
}

/// State of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Address of the client.
    pub peer: SocketAddr,
    /// `Origin` header of the handshake. `None` without one.
    pub origin: Option<String>,
    /// Milliseconds since the connection opened.
    pub connected_ms: u64,
    /// Messages received from the client.
    pub received_total: u64,
    /// Replies and deliveries to the client.
    pub sent_total: u64,
    /// Bytes in the client's queue.
    pub queued_bytes: u64,
    /// Subscriptions that are behind the newest message of their topic.
    pub behind: Vec<SubscriptionBehind>,
}

/// A subscription that is behind the newest message of its topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SubscriptionBehind {
    /// Topic of the subscription.
    pub topic: String,
    /// Offset of the last message that was sent to the client.
    pub offset: u64,
}

/// Bytes of names after which a page of connections ends, whatever its limit is. Bounds the size of
/// answers: the subscriptions of one connection can take 32 KiB.
pub(crate) const MAX_CLIENTS_PAGE_BYTES: usize = 512 * 1024;

impl ClientInfo {
    /// Returns the approximate size in memory and in an answer.
    pub(crate) fn bytes(&self) -> usize {
        let user = self.user.as_ref().map_or(0, String::len);
        let names: usize = self.subscriptions.iter().map(|name| name.len() + size_of::<String>()).sum();
        let connection = self.connection.as_ref().map_or(0, ConnectionInfo::bytes);
        size_of::<Self>() + self.client_id.as_str().len() + user + names + connection
    }
}

impl ConnectionInfo {
    /// Returns the approximate size of the texts.
    fn bytes(&self) -> usize {
        let origin = self.origin.as_ref().map_or(0, String::len);
        let behind: usize =
            self.behind.iter().map(|behind| behind.topic.len() + size_of::<SubscriptionBehind>()).sum();
        origin + behind
    }
}

/// One topic or pattern with its subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// Topic or pattern.
    pub topic: String,
    /// Number of subscribers: on this node, or on all nodes in a
    /// [`ClusterAnswer`](crate::ClusterAnswer).
    pub subscribers: u64,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// Entries, at most as many as the limit.
    pub items: Vec<T>,
    /// URL-safe cursor of the next page. `None` on the last page.
    pub next_cursor: Option<String>,
}

/// Answer of all nodes of a cluster together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterAnswer<T> {
    /// Answer merged from this node and all nodes that answered.
    pub answer: T,
    /// Names of the nodes that did not answer in time.
    pub unanswered: Vec<String>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeInfo {
    /// Node name.
    pub node_id: String,
    /// Version of the node's program.
    pub version: String,
    /// Open connections: current for this node, as of the last heartbeat for others.
    pub connections: u64,
    /// Time since this node started. For another node: time since its first heartbeat arrived.
    pub known: Duration,
    /// Time since the node's last heartbeat. Nodes send one each second. Zero for this node.
    pub silent: Duration,
    /// `true` if this entry is the node that returned the list.
    pub is_self: bool,
}

/// Error of a publish with an invalid argument. Nothing was published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The topic is invalid.
    #[error("invalid topic {topic:?}")]
    Topic {
        /// The rejected text.
        topic: String,
        /// The rule that the topic breaks.
        source: TopicError,
    },
    /// The message is invalid.
    #[error("invalid message for a topic")]
    Payload(#[from] PayloadError),
    /// The topic's rule has as many topics as it may have, and all of them have subscribers.
    #[error("too many topics with history are in use: raise `max_streams` of the topic's rule")]
    TooManyTopics,
    /// The store of the topic's history takes nothing now.
    #[error(transparent)]
    Unavailable(#[from] StoreUnavailable),
    /// The message is larger than the cluster's store of the topic's history accepts.
    #[error("the message is too large for the cluster's history store; send one of at most {limit} bytes")]
    TooLarge {
        /// Bytes of a message that the store accepts, whatever its topic is.
        limit: usize,
    },
}

/// Error of a history store that takes nothing now, or that does not answer in time: its disk is
/// full, slow or broken, or the cluster's broker cannot be reached. The log has the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the history store is unavailable; try again later")]
pub struct StoreUnavailable;

impl From<PublishRefusal> for PublishError {
    fn from(refusal: PublishRefusal) -> Self {
        match refusal {
            PublishRefusal::TooManyTopics => Self::TooManyTopics,
            PublishRefusal::Unavailable => Self::Unavailable(StoreUnavailable),
            PublishRefusal::TooLarge { limit } => Self::TooLarge { limit },
        }
    }
}

/// Error of a message that has no valid JSON form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The message's [`Serialize`](serde::Serialize) implementation failed with this text.
    #[error("the message cannot be serialized: {0}")]
    Serialize(String),
    /// The JSON breaks a rule of the protocol: it nests too deeply, or a message to clients is not
    /// an object with a `type`.
    #[error("{0}")]
    Protocol(Cow<'static, str>),
}

impl From<MessageError<'_>> for PayloadError {
    fn from(error: MessageError<'_>) -> Self {
        Self::Protocol(error.message)
    }
}

/// Error for a client ID without an open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no client of this id is connected")]
pub struct ClientNotFound;

/// Error for a node name that another node of the cluster uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another node of the cluster is named {0:?}: give each node a name of its own")]
pub struct NodeIdTaken(pub String);

/// Error for a worker that did not answer in time, because it is stuck or overloaded, or died. A
/// stuck or overloaded worker may execute the request later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker did not answer in time; it may still execute the request")]
pub struct WorkerTimeout;

/// Error of a call about one client, or of a message to clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is invalid and was sent to no client.
    #[error("invalid message for clients")]
    Payload(#[from] PayloadError),
    /// No connection with this ID is open, or its node did not answer in time.
    #[error(transparent)]
    NotFound(#[from] ClientNotFound),
    /// A worker did not answer in time.
    #[error(transparent)]
    WorkerTimeout(#[from] WorkerTimeout),
    /// The client is connected to another node, and the cluster is unreachable or its queue is
    /// full.
    #[error("the client is connected to another node, and the cluster cannot be reached")]
    ClusterUnavailable,
    /// The client is connected to another node, and the message is larger than the broker accepts.
    #[error("the client is connected to another node, and the message is larger than the broker accepts")]
    TooLarge,
}

/// Error for a malformed cursor. Cursors come from the previous page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is not from an earlier page; leave it out to start again")]
pub struct CursorError;

/// Error of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// The cursor is malformed.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// A worker did not answer in time.
    #[error(transparent)]
    WorkerTimeout(#[from] WorkerTimeout),
}
