//! Operations on clients, in the form that the workers of a node execute.

pub use deeperhub_cluster::{Action, Operation, Target};

use deeperhub_listener::Multicast;
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::message::ServerMessage;

use crate::connection_id::ConnectionId;

/// Clients of an operation on one node.
pub(crate) type WorkerTarget = Target<'static, ConnectionId>;

/// Action of an operation on one worker.
pub(crate) type WorkerAction = Action<'static, Multicast>;

/// Operation on one worker.
pub(crate) type WorkerOperation = Operation<'static, ConnectionId, Multicast>;

/// Action whose message is encoded, once for all workers.
#[derive(Debug)]
pub(crate) struct EncodedAction(Action<'static, Frame>);

impl EncodedAction {
    pub(crate) fn new(action: &Action<'_>) -> Self {
        Self(action.to_owned_with(|message| ServerMessage::Raw(*message).to_frame()))
    }

    /// Returns the action for one worker.
    pub(crate) fn for_worker(&self, is_only_worker: bool) -> WorkerAction {
        self.0.to_owned_with(|frame| {
            // A fork gives each worker its own reference count, so that workers do not contend for
            // one cache line.
            Multicast::new(if is_only_worker { frame.clone() } else { frame.fork() })
        })
    }
}

/// Number of connections on which an operation had an effect. `None` if the operation names a
/// client that is not connected.
pub(crate) type Reached = Option<u64>;
