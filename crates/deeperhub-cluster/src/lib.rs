//! Carries messages between the nodes of a hub over an existing broker: NATS or Redis.
//!
//! [`connect`] returns a [`Broker`] and a [`Driver`]. The node's threads queue messages with the
//! `Broker`, without waiting. The `Driver`'s thread sends the messages to the broker, and passes
//! those of other nodes to a [`MessageHandler`].
//!
//! # Guarantees
//! - A topic's messages reach only nodes that announced a subscriber of the topic or of a matching
//!   pattern ([`Broker::change_interest`]). The broker selects these nodes.
//! - A node handles each message at most once, no matter how many of its subscriptions match and
//!   which connections were lost. It never handles its own messages, except probes.
//! - Messages from one node on one topic keep their order, as do messages from one node to another.
//! - Payloads are delivered byte for byte.
//! - Publishers never wait for the broker. The queue is bounded; a publish fails at once if other
//!   nodes will not get the message ([`EnqueueError`]). Queued messages are sent again until the
//!   broker has confirmed them.
//!
//! # Limits
//! Messages of [`Broker::publish`] are not stored. A node that lost its connection misses those
//! published meanwhile. A broker that crashes loses messages that it confirmed and did not pass on
//! yet. There is no order between nodes.
//!
//! # Streams
//! [`Broker::append`] stores messages in the streams of their topics: on Redis and Valkey, or on NATS
//! with JetStream. A stored message ([`Message::Stored`]) has a position, which is the same for all
//! nodes. A node reads what it missed ([`Broker::read_streams`]). A server that loses its memory
//! begins a stream with a larger epoch, so no position is given to two messages that a node has
//! seen. [`Broker::check_store`] tells what a server lacks.
//!
//! Membership, elections and replication are left to the broker. Nodes exchange heartbeats only, so
//! that they can be listed and names stay unique.
//!
//! # Features
//! `nats` and `redis` each add an engine. Both are off by default.

mod announcement;
mod batch;
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
mod node_requests;
mod operation;
mod peers;
mod queue;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod store;

pub use broker::{Broker, ClusterState, EnqueueError, InterestChange};
pub use config::{BrokerUrl, BrokerUrlError, Config, Engine, StreamStorage, is_prefix};
pub use deeperhub_protocol::message::TraceContext;
pub use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};
pub use driver::{Driver, DriverHandle, JoinOutcome, MessageHandler, PendingAnswer};
pub use envelope::{
    ClientRequest, Envelope, EnvelopeError, MAX_ENVELOPE_OVERHEAD_BYTES, MAX_NODE_ID_BYTES, MAX_USER_BYTES,
    Message, Origin, PlainPublish, is_node_id,
};
#[cfg(feature = "nats")]
pub use nats::check_credentials;
#[cfg(all(feature = "nats", fuzzing))]
pub use nats::fuzz_operations;
pub use node_requests::RequestError;
pub use operation::{Action, Operation, Target};
pub use peers::Peer;
pub use queue::WakeUp;
pub use store::{
    Append, AppendError, AppendNumber, Appended, CheckError, MAX_READS, MAX_TOPS, Once, ReadError,
    ResetStream, ResetWhen, StoreFinding, StorePosition, StoreReply, StoredEnvelope, StreamLimits,
    StreamProgress, StreamRange, StreamRead, StreamRule, StreamTop, Whole, check_broker, check_store,
};

use std::time::SystemTime;

/// Creates the handle and the driver of a node's connection to its broker. The driver connects when
/// it is spawned.
///
/// `node` is the node's name (see [`is_node_id`]). `version` is the version of the node's program,
/// which lists of nodes show.
///
/// # Errors
///
/// Returns an error if the system has no random bytes.
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

/// Compiles the README's example.
#[cfg(all(doctest, feature = "nats"))]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
