//! Streams that the broker keeps: appends, reads, and what a server needs for them.
//!
//! The *store* is the broker in its role of keeping the last messages of topics. It gives each
//! message its position. [`Broker::append`](crate::Broker::append) sends a message to the store.
//! The store tells all nodes that follow the topic ([`Message::Stored`](crate::Message::Stored)),
//! and the outcome goes to [`MessageHandler::on_appended`](crate::MessageHandler::on_appended).
//!
//! # Epochs
//! The store begins a stream with a new, larger epoch if it does not know the topic, or if a node
//! knows a later position than the store does. The second happens after a failover that lost the
//! last writes. So a node never sees two messages at one position.
//!
//! # Offsets
//! Redis counts the messages of each topic, so offsets are dense. JetStream counts the messages of
//! all topics of a rule, so the offsets of one topic have holes. Each message names the one before.

mod append;
mod finding;
mod position;
mod read;
mod requests;
mod rules;

pub use append::{Append, AppendError, AppendNumber, Appended, Once};
pub(crate) use append::{AppendOutcome, AppendTarget};
#[cfg(feature = "nats")]
pub(crate) use append::{OwnedOnce, unix_ms};
pub use finding::{CheckError, StoreFinding, check_broker, check_store};
#[cfg(feature = "redis")]
pub(crate) use finding::{MIN_REDIS_VERSION, NEEDED_REDIS, is_evicting};
pub(crate) use position::{MAX_EPOCH, MAX_OFFSET};
pub use position::{StorePosition, StreamLimits};
pub use read::{
    MAX_READS, MAX_TOPS, ReadError, ResetStream, ResetWhen, StoreReply, StoredEnvelope, StreamProgress,
    StreamRange, StreamRead, StreamTop, Whole,
};
pub(crate) use requests::{Request, RequestQueue};
pub use rules::StreamRule;
pub(crate) use rules::StreamRules;
#[cfg(feature = "nats")]
pub(crate) use rules::{KeepingRule, find_rule};
