/// Where a node is in its life. Readiness is derived from it; nothing keeps a flag of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Listening sockets and workers are being made.
    Starting,
    /// Takes connections.
    Serving,
    /// Refuses new connections with 503 `draining` and closes the others over the drain time.
    Draining,
    /// All connections are gone, or the drain time is over.
    Stopped,
}
