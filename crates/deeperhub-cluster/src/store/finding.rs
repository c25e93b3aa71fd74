//! Needs of streams on a server, and what a check found.

use crate::config::Config;

/// Oldest version of Redis that keeps streams.
#[cfg(feature = "redis")]
pub(crate) const MIN_REDIS_VERSION: u32 = 6;

/// Its name.
#[cfg(feature = "redis")]
pub(crate) const NEEDED_REDIS: &str = "Redis 6";

/// Something that an operator should know about the server that keeps streams.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreFinding {
    /// The server's version is too old.
    #[error("the server has version {version}, which is too old to keep streams; use {needed} or later")]
    OldVersion {
        /// Version of the server.
        version: String,
        /// Name and oldest version of a server that keeps streams.
        needed: &'static str,
    },
    /// The server of NATS, or the account, has no JetStream. The text is the server's reason.
    #[error("the server has no JetStream for this account ({0}); enable it, or use Redis")]
    NoJetStream(String),
    /// The user of NATS lacks a permission. The text names it.
    #[error("the user lacks a permission that nodes need: {0}")]
    MissingRight(String),
    /// The server is part of a Redis Cluster, which keeps keys on several servers.
    #[error("the server belongs to a Redis Cluster; use one without cluster mode")]
    ClusterMode,
    /// The server counts with 32 bits, which is too few for epochs.
    #[error("the server is a 32-bit program; use a 64-bit one")]
    NarrowNumbers,
    /// The server does not accept the user or the password.
    #[error("the server refused the user or the password: {0}")]
    LoginRefused(String),
    /// All servers are replicas, which take no messages.
    #[error("the server is a replica, which takes no messages; name its primary")]
    Replica,
    /// The server has replicas, and accepts messages while it reaches none of them.
    #[error(
        "the server has replicas and accepts messages without them, which a failover loses; set \
         min-replicas-to-write 1"
    )]
    UnguardedReplicas,
    /// The user lacks these rights of an access list.
    #[error("the user lacks rights that nodes need; grant them with ACL SETUSER: {}", .0.join(" "))]
    MissingRights(Vec<String>),
    /// The server refused what streams need, for example because of an access list.
    #[error("the server refused a step that streams need: {0}")]
    Refused(String),
    /// The server evicts keys if its memory is full.
    #[error(
        "the server's maxmemory-policy {0} evicts histories if its memory is full; use noeviction, or expect lost \
         histories"
    )]
    Evicts(String),
    /// The server does not tell its version and settings.
    #[error("the server does not tell its version and its maxmemory-policy: {0}")]
    Unknown(String),
}

impl StoreFinding {
    /// Returns `true` if streams do not work. Other findings are warnings.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        !matches!(self, Self::Evicts(_) | Self::Unknown(_) | Self::UnguardedReplicas)
    }

    /// Returns `true` if the server can never keep streams as it is. Other errors can pass, such as
    /// a full memory.
    #[must_use]
    pub const fn is_lasting(&self) -> bool {
        self.is_error() && !matches!(self, Self::Refused(_) | Self::Replica)
    }
}

/// Reason why a check was not made: the server was not reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker was not reached: {0}")]
pub struct CheckError(pub(crate) String);

/// Checks whether a broker can keep streams, with a connection of its own: its version, its
/// settings, and each step with a stream of its own, which is removed. Needs a tokio runtime with
/// I/O and time.
///
/// # Errors
///
/// Returns [`CheckError`] if no server was reached within a few seconds.
#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    expect(clippy::unused_async, reason = "there are no engines")
)]
pub async fn check_store(config: &Config) -> Result<Vec<StoreFinding>, CheckError> {
    match config.url.engine() {
        #[cfg(feature = "redis")]
        crate::config::Engine::Redis => crate::redis::check_store(config).await,
        #[cfg(feature = "nats")]
        crate::config::Engine::Nats => crate::nats::check_store(config, None).await,
        #[cfg(not(all(feature = "nats", feature = "redis")))]
        engine => Err(CheckError(format!("the program was built without the engine {}", engine.name()))),
    }
}

/// Checks whether nodes can exchange messages over a broker, with a connection of its own: whether it
/// answers, what it is, and what it allows.
///
/// # Errors
///
/// Returns [`CheckError`] if no server was reached within a few seconds.
#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    expect(clippy::unused_async, reason = "there are no engines")
)]
pub async fn check_broker(config: &Config) -> Result<Vec<StoreFinding>, CheckError> {
    match config.url.engine() {
        #[cfg(feature = "redis")]
        crate::config::Engine::Redis => crate::redis::check_broker(config).await,
        #[cfg(feature = "nats")]
        crate::config::Engine::Nats => crate::nats::check_broker(config).await,
        #[cfg(not(all(feature = "nats", feature = "redis")))]
        engine => Err(CheckError(format!("the program was built without the engine {}", engine.name()))),
    }
}

impl crate::Broker {
    /// Checks whether the broker can keep streams, see [`check_store`]. A running NATS server that has
    /// proved it once proves only the rights of the user again, without a stream.
    ///
    /// # Errors
    ///
    /// Returns [`CheckError`] if no server was reached within a few seconds.
    pub async fn check_store(&self) -> Result<Vec<StoreFinding>, CheckError> {
        match self.0.config.url.engine() {
            #[cfg(feature = "nats")]
            crate::config::Engine::Nats => {
                crate::nats::check_store(&self.0.config, Some(std::sync::Arc::clone(&self.0))).await
            }
            _ => check_store(&self.0.config).await,
        }
    }
}

/// Returns `true` if a `maxmemory-policy` evicts keys. All keys of streams expire, so those that
/// evict only keys with a time to live concern them too.
#[cfg(feature = "redis")]
pub(crate) fn is_evicting(policy: &str) -> bool {
    policy != "noeviction"
}
