/// Phase of a node. Readiness is derived from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Listening sockets and workers are starting.
    Starting,
    /// Connections are accepted.
    Serving,
    /// New connections get 503 `draining`, and existing ones are closed over the drain time.
    Draining,
    /// All connections are closed, or the drain time is over.
    Stopped,
}
