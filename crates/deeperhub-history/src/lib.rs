//! Message history of topics: what is kept, where a subscriber continues, and how a slow one moves.
//!
//! The crate has values only: no I/O, no clock, no threads and no randomness. Times, random numbers
//! and messages are arguments. A message is any value, ideally a handle such as an `Arc`.
//!
//! - [`Rules`] say which topics keep messages, and how many ([`Policy`]). The first [`Rule`] that
//!   matches a topic counts.
//! - A [`Stream`] is what is kept of one topic: its [`Epoch`], its newest offset, and the last
//!   messages. It is bounded by messages, bytes and age.
//! - [`judge`] decides where a subscription starts, from the position that a client gives back.
//! - A [`Cursor`] moves a subscriber that is behind, as the rule's [`Delivery`] says. It tells every
//!   offset that is skipped ([`Gap`]).
//! - A [`StreamTable`] holds the streams under one lock. Several tables share a [`Budget`], in which
//!   each rule has its own share.
//! - A [`OnceWindow`] recognizes publishes that a client repeats.
//!
//! ```
//! use deeperhub_history::{Cursor, Delivery, Epoch, Evicted, Retention, Seconds, Step, Stream};
//!
//! let bounds = Retention { messages: 100, bytes: 64 << 10, ttl_seconds: 600 };
//! let mut stream = Stream::new(Epoch::from_bits(7));
//! let mut subscriber = Cursor::new(stream.epoch(), stream.newest());
//! for text in ["first", "second"] {
//!     stream.append(&bounds, Seconds::new(0), &mut Evicted::new(), |_, _| (text, text.len()));
//! }
//! // The subscriber is slow and prefers the newest message.
//! let step = subscriber.advance(&stream, Delivery::Latest);
//! assert!(matches!(step, Some(Step::Gap(gap)) if (gap.from, gap.to) == (Some(1), 1)));
//! let step = subscriber.advance(&stream, Delivery::Latest);
//! assert_eq!(step, Some(Step::Message { offset: 2, prev: None, message: &"second" }));
//! ```

mod budget;
mod cursor;
mod evicted;
mod expiry;
mod gap;
mod judge;
mod mirror;
mod once;
mod planted;
mod policy;
mod ring;
mod rules;
mod seconds;
mod stored;
mod stream;
mod table;

pub use budget::{Budget, BudgetLimits, RuleUsage};
pub use cursor::{Cursor, Step};
pub use deeperhub_types::{
    Epoch, GapReason, NotRecovered, Position, Subscription, Topic, TopicError, TopicPattern,
};
pub use evicted::{Evicted, EvictionReason};
pub use gap::Gap;
pub use judge::{Recover, Start, SubscribeRequest, SubscriptionScope, judge, judge_within};
pub use mirror::{
    CheckResult, LiveResult, Mirror, MirrorStep, ReadRequest, ReadResult, StorePosition, StoredMessage,
    StreamRead, SubscribeCheck,
};
pub use once::{OnceKey, OnceLimits, OnceWindow};
pub use policy::{Acknowledge, Delivery, Policy, PolicySettings, Retention, RuleError};
pub use rules::{Rule, RuleId, Rules};
pub use seconds::Seconds;
pub use stored::StoredPart;
pub use stream::{Predecessor, Restored, Stream};
pub use table::{Appended, Applied, OpenError, Opened, RemovedStream, StreamId, StreamTable, Swept};

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
