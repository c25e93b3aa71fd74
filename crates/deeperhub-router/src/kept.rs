//! Values that the router keeps for topics, for example their last messages.

use crate::router::{Published, Router, STRIPES, Shared};
use crate::stripe::RouteEntry;
use crate::wakeups::{WakeOnDrop, Wakeups};
use deeperhub_types::Topic;
use std::ops::Range;
use std::sync::Arc;

#[cfg(all(test, not(loom)))]
mod reach_tests;
#[cfg(all(test, not(loom)))]
mod stripe_tests;
#[cfg(all(test, not(loom)))]
mod tests;

/// A value that a [`Router`] keeps for each topic, for example the topic's last messages.
///
/// The router does not look into the value. It promises that functions which get the value run one
/// at a time, in the order of the topic's messages, and that a subscription starts between two of
/// them. A subscriber that reads the kept messages when it subscribes thus misses no message, and
/// gets none twice.
///
/// [`Default`] is the value of a topic for which nothing was kept yet. The first function that gets
/// the value can put something into it. Values are stored in the table itself, so large ones belong
/// into a `Box`: `Option<Box<V>>` takes 8 bytes for a topic without a value, and `()` takes none.
///
/// Topics of one stripe (see [`Router::stripes`]) also share a value, [`Self::Stripe`], under the
/// same lock. It can be a table of the messages of all these topics, so that values of topics are
/// small, and the oldest message of a stripe is found without a search. If a function panics, its
/// changes of the stripe's value stay, but the value of a topic without an entry is dropped.
///
/// # Example
/// A chat room keeps its last two messages, and a visitor reads them before the live ones.
///
/// ```
/// use deeperhub_router::{
///     Config, DeliveryFlow, DeliveryState, Keep, Outgoing, Reach, Router, ShardId, Topic,
/// };
/// use std::collections::VecDeque;
/// use std::task::{Context, Waker};
///
/// #[derive(Default)]
/// struct LastMessages(VecDeque<&'static str>);
///
/// impl Keep for LastMessages {
///     type Stripe = ();
///
///     fn is_spent(&self) -> bool {
///         self.0.is_empty()
///     }
/// }
///
/// let router = Router::<&str, LastMessages>::keeping(1, Config::default());
/// let mut shard = router.attach(ShardId(0));
/// let room = Topic::parse("room.7")?;
/// let publish = |text: &'static str| {
///     let (_, evicted) = router.publish_kept(&room, None, |_topic, kept, ()| {
///         let evicted = if kept.0.len() == 2 { kept.0.pop_front() } else { None };
///         kept.0.push_back(text);
///         let make = move || text;
///         (Some(Outgoing { bytes: text.len(), make, reach: Reach::Matching }), evicted)
///     });
///     // The evicted message is dropped here, after the lock.
///     drop(evicted);
/// };
/// ["good", "morning", "all"].map(publish);
///
/// let (_, mut received) = shard.subscribe_at(1, &room, |_topic, kept, ()| {
///     (DeliveryState::Live, Vec::from(kept.0.clone()))
/// });
/// publish("welcome");
/// let mut cx = Context::from_waker(Waker::noop());
/// let _ = shard.poll_deliver(&mut cx, |_subscriber, text| {
///     received.push(*text);
///     DeliveryFlow::Continue
/// });
/// assert_eq!(received, ["morning", "all", "welcome"]);
/// # Ok::<(), deeperhub_router::TopicError>(())
/// ```
pub trait Keep: Default + Send + 'static {
    /// Value that all topics of a stripe share (see [`Router::stripes`]), under the same lock, for
    /// example a table of the kept messages. `()` takes no memory.
    type Stripe: Send + 'static;

    /// Returns `true` if the router may drop the value, because nothing is kept.
    ///
    /// A topic without subscribers is removed from the table when its value is spent. This happens
    /// under a lock, so a spent value must be quick to drop.
    fn is_spent(&self) -> bool;

    /// Called when a topic gets its first subscriber on any shard (`true`), or has lost its last
    /// one (`false`). Patterns do not count, and reserved topics are included. Does nothing by
    /// default.
    ///
    /// The call comes after the function of [`Shard::subscribe_at`], and before the router asks
    /// whether the value [is spent](Self::is_spent). It happens under a lock, so it must be quick,
    /// and must neither call the router nor panic.
    ///
    /// [`Shard::subscribe_at`]: crate::Shard::subscribe_at
    fn on_followed(&mut self, is_followed: bool, stripe: &mut Self::Stripe) {
        let _ = (is_followed, stripe);
    }
}

/// Keeps nothing, and takes no memory.
impl Keep for () {
    type Stripe = ();

    fn is_spent(&self) -> bool {
        true
    }
}

/// Keeps the value in `Some`.
impl<V: Send + 'static> Keep for Option<V> {
    type Stripe = ();

    fn is_spent(&self) -> bool {
        self.is_none()
    }
}

/// A message that a publish pushes to its subscribers.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<F> {
    /// Bytes that count against [`Config::inbox_soft_limit_bytes`](crate::Config).
    pub bytes: usize,
    /// Returns the message. It is called once for each shard with a subscriber that is not
    /// suspended, under a lock, so it must be quick.
    pub make: F,
    /// Subscribers that get the message.
    pub reach: Reach,
}

/// Subscribers that get a message. [`Published::subscribers`] counts no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Subscribers whose topic or pattern matches, as usual.
    Matching,
    /// Only subscribers of exactly this topic. A client gets the message through no pattern.
    Topic,
}

/// Whether a subscription gets the messages of its topic as they are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It gets every message that is published from now on.
    Live,
    /// It gets none until it is resumed; see [`Shard::suspend`](crate::Shard::suspend).
    Suspended,
}

/// A topic as a function sees it that gets the topic's kept value.
#[derive(Debug, Clone, Copy)]
pub struct TopicView<'a>(&'a RouteEntry);

impl<'a> TopicView<'a> {
    pub(crate) fn new(route: &'a RouteEntry) -> Self {
        Self(route)
    }

    /// Returns the topic's name. Clones share the memory of the router's own copy.
    #[must_use]
    pub fn name(&self) -> &'a Arc<str> {
        &self.0.name
    }

    /// Returns the number of the topic's subscribers on all shards, suspended ones included. It
    /// does not count patterns, and no subscription that the call is about to add.
    #[must_use]
    pub fn subscribers(&self) -> u64 {
        self.0.subscribers()
    }
}

impl<M, T: Keep> Shared<M, T> {
    /// Calls `update` with a kept value; see [`Router::update_kept`].
    pub(crate) fn update_kept<R>(
        &self,
        name: &str,
        update: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> R,
    ) -> R {
        let hash = self.hash(name);
        let mut stripe = self.stripe(hash);
        let (_, output) = stripe.update_kept(hash, name, &self.hasher, update);
        stripe.shrink(&self.hasher);
        output
    }
}

impl<M: Send + 'static, T: Keep> Router<M, T> {
    /// Publishes a message that `prepare` makes from the topic, its kept value and the value of its
    /// stripe.
    ///
    /// The call and the pushes are one critical section of the topic: all inboxes have its messages
    /// in the order in which `prepare` was called, and a [`Shard::subscribe_at`] happens before or
    /// after both. Suspended subscriptions count as subscribers. Patterns that match the topic get
    /// the message, unless its [`Reach`] leaves them out. If `prepare` returns no message, nothing
    /// is pushed, and [`Published::subscribers`] is 0.
    ///
    /// `prepare` runs under a lock, so it must be quick and must not call the router. What it takes
    /// out of the kept value can be returned, and is then dropped outside of the lock.
    /// [`publish`](Self::publish) has the other arguments.
    ///
    /// [`Shard::subscribe_at`]: crate::Shard::subscribe_at
    pub fn publish_kept<F: FnMut() -> M, R>(
        &self,
        topic: &Topic<'_>,
        source: Option<u64>,
        prepare: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (Option<Outgoing<F>>, R),
    ) -> (Published, R) {
        self.shared().publish_kept(topic, source, prepare, Wakeups::Immediate(WakeOnDrop::default()))
    }

    /// Publishes the messages that `prepare` makes, in their order. No other message of the topic
    /// comes between them. Otherwise works like [`publish_kept`](Self::publish_kept).
    pub fn publish_each_kept<F: FnMut() -> M, R>(
        &self,
        topic: &Topic<'_>,
        source: Option<u64>,
        prepare: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (Vec<Outgoing<F>>, R),
    ) -> R {
        let wakeups = Wakeups::Immediate(WakeOnDrop::default());
        self.shared().publish_each_kept(topic, source, prepare, wakeups)
    }

    /// Calls `update` with a topic, its kept value and the value of its stripe, and returns the
    /// result. The call is a critical section of the topic, as in
    /// [`publish_kept`](Self::publish_kept).
    pub fn update_kept<R>(
        &self,
        topic: &Topic<'_>,
        update: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> R,
    ) -> R {
        self.shared().update_kept(topic.as_str(), update)
    }

    /// Works like [`update_kept`](Self::update_kept), and also returns the number of subscriptions
    /// that a publish would match now: those to the topic and to patterns, on all shards.
    pub fn update_and_count<R>(
        &self,
        topic: &Topic<'_>,
        update: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> R,
    ) -> (u64, R) {
        self.shared().update_and_count(topic.as_str(), update)
    }

    /// Returns the numbers of the stripes: parts of the topics, each under its own lock.
    #[must_use]
    pub fn stripes(&self) -> Range<usize> {
        0..STRIPES
    }

    /// Calls `update` with the value that the topics of a stripe share, under the lock of the
    /// stripe, and returns the result. Returns `None`, without a call, if there is no such stripe.
    ///
    /// Values of topics stay as they are: a topic whose value becomes spent is removed by the next
    /// function that gets it, such as [`visit_kept`](Self::visit_kept).
    pub fn update_stripe<R>(&self, stripe: usize, update: impl FnOnce(&mut T::Stripe) -> R) -> Option<R> {
        let mut stripe = self.shared().stripe_at(stripe)?;
        Some(update(&mut stripe.value))
    }

    /// Calls `visit` with each topic of a stripe for which something is kept, its kept value and
    /// the value of the stripe. Reserved topics are included. Does nothing if there is no such
    /// stripe.
    ///
    /// All calls happen under the lock of the stripe, so publishes to its topics wait meanwhile.
    pub fn visit_kept(&self, stripe: usize, visit: impl FnMut(TopicView<'_>, &mut T, &mut T::Stripe)) {
        if let Some(mut stripe) = self.shared().stripe_at(stripe) {
            stripe.visit_kept(&self.shared().hasher, visit);
        }
    }

    /// Calls `visit` with each topic of a stripe that has subscribers or for which something is kept.
    /// Otherwise works like [`visit_kept`](Self::visit_kept). What `visit` keeps for a topic stays.
    pub fn visit_topics(&self, stripe: usize, visit: impl FnMut(TopicView<'_>, &mut T, &mut T::Stripe)) {
        if let Some(mut stripe) = self.shared().stripe_at(stripe) {
            stripe.visit_topics(&self.shared().hasher, visit);
        }
    }
}
