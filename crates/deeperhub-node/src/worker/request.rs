//! Requests to a worker, from handles and from other nodes.

use deeperhub_listener::ConnectionKey;
use deeperhub_router::InboxPosition;
use tokio::sync::oneshot;

use crate::connection_id::ConnectionId;
use crate::operation::{Reached, WorkerOperation};
use crate::top::TopReport;
use crate::types::ClientInfo;

/// Maximum requests in the queue of one worker. Bounds the queue's memory: callers wait while it is
/// full.
pub(crate) const REQUEST_QUEUE_CAPACITY: usize = 1024;

/// Request from a handle, or from another node, to a worker.
#[derive(Debug)]
pub(crate) enum WorkerRequest {
    Execute {
        operation: WorkerOperation,
        reply: oneshot::Sender<Reached>,
    },
    Top {
        reply: oneshot::Sender<TopReport>,
    },
    Client {
        client: ConnectionId,
        reply: oneshot::Sender<Option<ClientInfo>>,
    },
    Clients {
        from: ConnectionKey,
        limit: usize,
        reply: oneshot::Sender<(Vec<ClientInfo>, Option<ConnectionKey>)>,
    },
    /// Runs a function on the worker, for tests.
    #[cfg(test)]
    Run(fn()),
}

/// Request in the queue of a worker.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) request: WorkerRequest,
    /// Position in the worker's inbox. The worker delivers everything published before it, then
    /// executes the request.
    pub(crate) after: InboxPosition,
}

#[cfg(test)]
pub(crate) mod tests;
