//! Who is subscribed where, and an ordered hand-over of publishes to worker threads.
//!
//! A [`Router`] is shared by all threads. It knows for each topic and pattern which workers ("shards") have how many
//! subscribers of it, and no subscriber by itself: those stand in the [`Shard`] of the worker that serves them, which
//! nobody else touches. A publish takes one lock, puts one envelope into the inbox of each shard that has a match, and
//! wakes a worker only if it sleeps. The worker then walks its own lists, without any lock. What a worker publishes itself
//! ([`Shard::publish`]) wakes the others when it says so, once for all of a burst.
//!
//! # What is promised
//! - All subscribers of a topic, on whatever shard, are given its messages in one and the same order.
//! - A client whose subscriptions overlap is given each message once.
//! - Messages of one source (see [`Router::publish`]) keep their order, on whatever topics they are.
//! - A subscription starts and ends sharply: what was published before [`Shard::subscribe`] is not delivered, what is
//!   published after it is, and nothing after [`Shard::unsubscribe`].
//! - A fan-out to many does not hold up others: it is interrupted whenever the worker wants ([`DeliveryFlow::Pause`]), and
//!   fan-outs of other topics and sources go on between its parts.
//!
//! # Bounds
//! Inboxes have a soft limit ([`Config`]): a push never waits, since it happens under a lock, but tells the publisher to
//! pause. The tables are as large as what is subscribed to, and give memory back when subscribers
//! leave. The caller limits the subscriptions of a client; [`Shard::held_bytes`] returns the memory
//! that they hold.
//!
//! A publish makes one hash lookup for each shape of pattern that its topic could match. There are
//! at most as many shapes as patterns, and at most `2^(n + 1)` for a topic of `n` levels. The rest
//! of the cost is linear in the number of matches.
//!
//! ```
//! use deeperhub_types::{Subscription, Topic};
//! use deeperhub_router::{Config, DeliveryFlow, Router, ShardId};
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
//! # Ok::<(), deeperhub_types::TopicError>(())
//! ```

mod arena;
mod fanout;
mod inbox;
mod inline_list;
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

pub use page::{InvalidCursor, TopicPage};
pub use router::{Config, InboxPosition, InterestChange, Published, Router, ShardId};
pub use shard::{DeliveryFlow, Shard, Subscribed, SubscriberKey, WORKER_SUBSCRIBER};

/// The README's example runs with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
