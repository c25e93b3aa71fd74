use deeperhub_security::{OriginPolicy, RateLimit};

/// What a node allows, with the defaults of the README's table.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Sockets, threads, sizes and times.
    pub listener: deeperhub_listener::Config,
    /// Paths that clients connect to. Default `/` and `/ws`.
    pub paths: Vec<String>,
    /// Which web pages may connect.
    pub origins: OriginPolicy,
    /// Messages of one connection; `None`: no limit. Default 100 per second, burst 200.
    pub rate_limit: Option<RateLimit>,
    /// Subscriptions of one connection. Default 128.
    pub max_subscriptions: usize,
    /// This node's name: 1 to 32 bytes of `A-Z a-z 0-9 _ -`; client ids start with it. Default: random.
    pub node_id: String,
}
