//! Carries messages between the nodes of a hub, over a broker that exists already: NATS or Redis.
//!
//! [`connect`] gives a [`Broker`], which a node's threads hand messages over to without ever waiting, and a
//! [`Driver`], whose thread carries them to the broker and brings those of other nodes to an [`MessageHandler`].
//!
//! # What is promised
//! - A topic's messages are carried only to nodes that have told of an [`InterestChange`] in it, by itself or by a pattern.
//!   The broker does the choosing.
//! - A message is carried out at most once on a node, however many of its subscriptions match and whatever connections
//!   were lost, and never on the node that it came from.
//! - Messages of one node on one topic keep their order, as do those from one node to one other.
//! - Payloads are the bytes that they were.
//! - Nothing waits for the broker: the queue is bounded, and whoever hands something over learns at once when other
//!   nodes will not get it ([`PublishError`]). What was taken is sent again until the broker has confirmed it.
//!
//! # What is not
//! Messages are not stored. A node whose own connection to the broker is lost misses what is published meanwhile, and
//! a broker that crashes loses what it had taken and not yet passed on. There is no order between nodes.
//!
//! # What is absent on purpose
//! Membership, elections and replication: the broker has them. Nodes only greet each other, so that they can be listed
//! and that none has another's name.
//!
//! # Features
//! `nats` and `redis`, each an engine with its client library, both off by default.

mod broker;
mod config;
mod cover;
mod dedup_window;
mod driver;
mod envelope;
mod interest;
mod link;
mod metrics;
mod names;
#[cfg(feature = "nats")]
mod nats;
mod peers;
mod queue;
#[cfg(feature = "redis")]
mod redis;

pub use broker::{Broker, ClusterState, InterestChange, PublishError, RequestError};
pub use config::{BrokerUrl, BrokerUrlError, Config, Engine, is_prefix};
pub use driver::{Driver, DriverHandle, JoinOutcome, MessageHandler, PendingAnswer};
pub use envelope::{
    Envelope, EnvelopeError, MAX_ENVELOPE_OVERHEAD_BYTES, MAX_NODE_ID_BYTES, MAX_USER_BYTES, Message, Origin,
    is_node_id,
};
#[cfg(feature = "nats")]
pub use nats::check_credentials;
pub use peers::Peer;

use std::time::SystemTime;

/// Makes the two ends of a node's connection to its broker; nothing is connected before the driver is started.
///
/// `node` names it: see [`is_node_id`]. `version` is of its program, for lists.
///
/// # Errors
///
/// The system gives no random bytes.
pub fn connect(
    config: Config,
    node: &str,
    version: &'static str,
) -> Result<(Broker, Driver), getrandom::Error> {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // 44 bits of milliseconds last until the year 2527.
    let incarnation = (time.as_millis() as u64) << 20 | u64::from(getrandom::u32()? >> 12);
    let broker = Broker::new(config, node.to_owned(), incarnation, version);
    let driver = Driver::new(std::sync::Arc::clone(&broker.0));
    Ok((broker, driver))
}
