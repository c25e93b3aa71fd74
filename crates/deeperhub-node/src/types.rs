//! Values that a node's handle returns.

use deeperhub_protocol::ClientId;
use deeperhub_protocol::message::ClusterFault;

/// What a publish or a send reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// Subscriptions matched on this node (publish), or connections reached (sends).
    pub count: u64,
    /// Fault that kept it from other nodes. `None`: they got it, or there are none.
    pub cluster: Option<ClusterFault>,
}

/// One connection as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientInfo {
    /// Its name.
    pub client_id: ClientId,
    /// The user of its token; `None` without one.
    pub user: Option<String>,
    /// Topics and patterns it is subscribed to.
    pub subscriptions: Vec<String>,
}

/// Bytes of names after which a page of connections ends, whatever its limit. Subscriptions may
/// take 32 KiB per connection.
pub(crate) const MAX_CLIENTS_PAGE_BYTES: usize = 512 * 1024;

impl ClientInfo {
    /// Returns its approximate size in memory and in an answer.
    pub(crate) fn bytes(&self) -> usize {
        let user = self.user.as_ref().map_or(0, String::len);
        let names: usize = self.subscriptions.iter().map(|name| name.len() + size_of::<String>()).sum();
        size_of::<Self>() + self.client_id.as_str().len() + user + names
    }
}

/// One topic or pattern that is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// The topic, or the pattern as such.
    pub topic: String,
    /// Its subscribers on this node.
    pub subscribers: u64,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// At most as many as asked for.
    pub items: Vec<T>,
    /// Where to go on; `None` at the end. URL-safe.
    pub next_cursor: Option<String>,
}

/// No connection of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no client of this id is connected")]
pub struct ClientNotFound;

/// Another node of the cluster has this one's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another node of the cluster is named {0:?}: give each node a name of its own")]
pub struct NodeIdTaken(pub String);

/// Error for a worker that did not answer: it is stuck, overloaded, or died. It may carry out the
/// request later, unless it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker does not answer; what was asked of it may be carried out later")]
pub struct WorkerTimeout;

/// Why one client was not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No connection of this id is open on any node, or its node did not answer in time.
    #[error(transparent)]
    NotFound(#[from] ClientNotFound),
    /// The client's worker did not answer in time.
    #[error(transparent)]
    WorkerTimeout(#[from] WorkerTimeout),
    /// The client is another node's, and the cluster cannot be reached or takes no more.
    #[error("the client is connected to another node, and the cluster cannot be reached")]
    ClusterUnavailable,
    /// The client is connected to another node, and the broker does not take messages of this size.
    #[error(
        "the client is connected to another node, and the message is larger than the cluster's broker takes"
    )]
    TooLarge,
}

/// The cursor does not come from an earlier page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cursor is not one that a page gave")]
pub struct CursorError;

/// Why there is no page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// The cursor does not come from an earlier page.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// A worker did not answer in time.
    #[error(transparent)]
    WorkerTimeout(#[from] WorkerTimeout),
}
