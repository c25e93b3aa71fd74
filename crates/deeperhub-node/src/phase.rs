//! Phases in the life of a node.

/// Phase of a node. A node is ready only while it is serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Listening sockets and workers are starting.
    Starting,
    /// Connections are accepted.
    Serving,
    /// New connections are refused with 503 `draining`. Existing ones are closed, spread over the
    /// drain time.
    Draining,
    /// The node was stopped.
    Stopped,
}
