//! Configuration of a cluster.

/// Membership in a cluster.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// Broker and its connection settings.
    pub broker: deeperhub_cluster::Config,
    /// `true` if the node counts as ready while the broker is unreachable. Default `false`.
    pub ready_alone: bool,
}

impl ClusterConfig {
    /// Creates a configuration with defaults.
    #[must_use]
    pub const fn new(broker: deeperhub_cluster::Config) -> Self {
        Self { broker, ready_alone: false }
    }
}
