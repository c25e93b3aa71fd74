//! A table of subscriptions, and an ordered hand-over of published messages to worker threads.
//!
//! All threads share a [`Router`]. Its routing table contains the number of subscribers that each
//! worker ("shard") has for each topic and pattern. The subscribers themselves are in the [`Shard`]
//! of the worker that serves them, which no other thread accesses.
//!
//! A publish pushes one envelope (the message, and the numbers of the matching subscriber lists)
//! into the inbox of each shard with a match. It holds the lock of the topic meanwhile, and wakes a
//! worker only if the worker sleeps. The worker then delivers to its own subscribers without any
//! lock. A worker that publishes ([`Shard::publish`]) can wake the others once for a whole burst,
//! and so can any other thread ([`DeferredPublisher`]).
//!
//! # Guarantees
//! - All subscribers of a topic, on all shards, get its messages in the same order.
//! - A client with overlapping subscriptions gets each message once.
//! - Messages of one source (see [`Router::publish`]) keep their order, even across topics.
//! - Subscriptions start and end exactly: a client gets nothing published before
//!   [`Shard::subscribe`], everything published after it, and nothing after [`Shard::unsubscribe`].
//! - A large fan-out (the deliveries of one message) does not delay others. The worker can
//!   interrupt it after any client ([`DeliveryFlow::Pause`]). Fan-outs of other topics and sources
//!   continue between its parts.
//!
//! # Kept values
//! A router can keep a value for each topic, such as its last messages ([`Keep`],
//! [`Router::keeping`]). Functions that get the value run under the lock of the topic:
//! - [`Router::publish_kept`] makes a message from the value, for example gives it a number, and
//!   pushes it in the same critical section.
//! - [`Shard::subscribe_at`] reads the value, and decides whether deliveries start at once or after
//!   a replay of older messages.
//! - [`Shard::suspend`] stops the deliveries of a subscription, for example because its client
//!   reads too slowly. [`Shard::resume_at`] reads the value, and continues them if nothing is
//!   missing.
//! - [`Router::update_kept`] and [`Router::visit_kept`] are for reads and for expiry.
//!
//! Topics of one stripe share a value under the same lock ([`Keep::Stripe`]), such as a table of
//! their messages. The functions above get it too, and [`Router::update_stripe`] gets it alone.
//! [`Keep::on_followed`] tells a topic's value when the topic gets its first subscriber, and when
//! it has lost its last one. A message made from a kept value can be for subscribers of exactly its
//! topic ([`Reach::Topic`]), and then reaches no patterns.
//!
//! A subscriber gets all messages of the topic, each once and in order: the first ones from the
//! value, the others by delivery. Suspension is per subscription: a pattern of the same client still
//! delivers, so what the client reads may repeat its messages. The router does not tell which
//! message a client got last. Messages that need it carry a number of their own.
//!
//! A topic without subscribers stays in the table while something is kept for it. Counts, lists and
//! [`Router::observe_interest`] only see topics with subscribers. Routers that keep nothing
//! (`T = ()`) pay nothing for this.
//!
//! # Bounds
//! Inboxes have only a soft limit ([`Config`]). A push happens under a lock, so it never waits;
//! above the limit, the publisher is asked to pause. The tables grow with the subscriptions and the
//! topics with a kept value, and free memory when these end. The caller limits the subscriptions of
//! a client, and what is kept. [`Shard::held_bytes`] returns the memory that a client's
//! subscriptions hold.
//!
//! The shape of a pattern says which of its levels are wildcards. A publish makes one hash lookup
//! for each shape that its topic could match. There are at most as many shapes as patterns, and at
//! most `2^(n + 1)` for a topic of `n` levels. The rest of the cost grows with the number of
//! matches.
//!
//! # Example
//! ```
//! use deeperhub_router::{Config, DeliveryFlow, Router, ShardId, Subscription, Topic};
//! use std::task::{Context, Waker};
//!
//! let router = Router::new(1, Config::default());
//! let mut shard = router.attach(ShardId(0));
//! shard.subscribe(7, &Subscription::parse("sports.football")?);
//! shard.subscribe(8, &Subscription::parse("sports.*")?);
//!
//! let published = router.publish(&Topic::parse("sports.football")?, None, 5, || "2 : 1");
//! assert_eq!(published.subscribers, 2);
//!
//! let mut delivered = Vec::new();
//! let mut cx = Context::from_waker(Waker::noop());
//! while shard
//!     .poll_deliver(&mut cx, |key, message| {
//!         delivered.push((key, *message));
//!         DeliveryFlow::Continue
//!     })
//!     .is_ready()
//! {}
//! delivered.sort_unstable();
//! assert_eq!(delivered, [(7, "2 : 1"), (8, "2 : 1")]);
//! # Ok::<(), deeperhub_router::TopicError>(())
//! ```

mod arena;
mod deferred;
mod fanout;
mod inbox;
mod inline_list;
mod kept;
mod level_subsets;
#[cfg(all(test, loom))]
mod loom_models;
mod matched_lists;
mod page;
mod patterns;
mod router;
mod shape_index;
mod shard;
mod stripe;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;
mod wakeups;
mod wildcard;

pub use deeperhub_types::{Subscription, Topic, TopicError, TopicPattern};
pub use deferred::DeferredPublisher;
pub use kept::{DeliveryState, Keep, Outgoing, Reach, TopicView};
pub use page::{InvalidCursor, TopicPage};
pub use router::{Config, InboxPosition, InterestChange, Published, Router, ShardId};
pub use shard::{DeliveryFlow, Shard, Subscribed, SubscriberKey, WORKER_SUBSCRIBER};

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
