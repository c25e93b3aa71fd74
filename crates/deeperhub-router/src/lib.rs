//! Who is subscribed where, and an ordered hand-over of publishes to worker threads.
use deeperhub_protocol::{Subscription, Topic};
use std::task::{Context, Poll};

/// Names a worker ("shard") of this node: 0 to `shards - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// What a publish reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Subscriptions matched on this node, exact topics and patterns together.
    pub subscribers: u64,
    /// An inbox is over its soft limit: the publisher should pause until [`Router::is_congested`] is false.
    pub congested: bool,
}

/// The node's routing table. Clone-able handle, `Send + Sync`.
#[derive(Debug)]
pub struct Router<M> { _m: std::marker::PhantomData<fn(M)> }
impl<M> Clone for Router<M> { fn clone(&self) -> Self { Self { _m: std::marker::PhantomData } } }

/// Options of a router.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Config {
    /// Envelopes that wait in one shard's inbox before publishes report congestion. Default 4096.
    pub inbox_soft_limit: usize,
    /// Bytes (as told by [`Weigh`]) ... see there. Default 64 MiB.
    pub inbox_soft_limit_bytes: usize,
}

impl<M: Send + 'static> Router<M> {
    pub fn new(shards: u16, config: Config) -> Self { let _ = (shards, config); unimplemented!() }
    /// The single consumer of a shard. Called again after a worker died: what the dead one had counted is forgotten, its inbox emptied.
    pub fn attach(&self, shard: ShardId) -> Shard<M> { let _ = shard; unimplemented!() }
    /// Hands one envelope to each shard that has a matching subscription; `make` is called once for each of them.
    pub fn publish(&self, topic: &Topic<'_>, bytes: usize, make: impl FnMut() -> M) -> Published { let _ = (topic, bytes, make); unimplemented!() }
    /// Whether any inbox is still over its soft limit.
    pub fn is_congested(&self) -> bool { unimplemented!() }
    /// Subscribers of one topic or of one pattern as such.
    pub fn subscribers(&self, subscription: &Subscription<'_>) -> u64 { let _ = subscription; unimplemented!() }
    /// Pages through everything that is subscribed to. `cursor` is opaque (as returned).
    pub fn list(&self, cursor: Option<&str>, limit: usize) -> Result<Page, BadCursor> { let _ = (cursor, limit); unimplemented!() }
    /// Number of different topics and patterns with a subscriber.
    pub fn topics(&self) -> u64 { unimplemented!() }
}
#[derive(Debug)] pub struct Page { pub topics: Vec<(String, u64)>, pub next_cursor: Option<String> }
#[derive(Debug)] pub struct BadCursor;

/// A subscriber of a shard: the worker's slab key of the connection.
pub type Key = u32;

/// The worker's own part: its inbox and its local subscriptions. Not shared, no synchronisation except the inbox hand-over.
#[derive(Debug)]
pub struct Shard<M> { _m: std::marker::PhantomData<M> }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed { New, Already }
impl<M: Send + 'static> Shard<M> {
    pub fn subscribe(&mut self, key: Key, subscription: &Subscription<'_>) -> Subscribed { let _ = (key, subscription); unimplemented!() }
    /// Whether it was subscribed.
    pub fn unsubscribe(&mut self, key: Key, subscription: &Subscription<'_>) -> bool { let _ = (key, subscription); unimplemented!() }
    /// Ends all subscriptions of a client (its connection closes).
    pub fn remove(&mut self, key: Key) -> usize { let _ = key; unimplemented!() }
    pub fn is_subscribed(&self, key: Key, subscription: &Subscription<'_>) -> bool { let _ = (key, subscription); unimplemented!() }
    /// Number of a client's subscriptions.
    pub fn subscription_count(&self, key: Key) -> usize { let _ = key; unimplemented!() }
    /// The client's subscriptions by name (for lists; a renewal of a token).
    pub fn subscriptions(&self, key: Key) -> impl Iterator<Item = &str> + '_ { let _ = key; std::iter::empty() }
    /// How many of this client's subscriptions match a topic (for `exclude_self`).
    pub fn matches(&self, key: Key, topic: &Topic<'_>) -> u64 { let _ = (key, topic); unimplemented!() }
    /// Delivers what is in the inbox: calls `deliver(key, &message)` for each subscriber, each client at most once per message,
    /// messages of a topic in order, until the inbox is empty or `deliver` answers `Flow::Pause` (it then goes on at the next call
    /// exactly behind the delivery that answered so).
    /// `Ready`: there is more to do, call again soon. `Pending`: nothing left, `cx`'s waker is called when something comes.
    pub fn poll_deliver(&mut self, cx: &mut Context<'_>, deliver: impl FnMut(Key, &M) -> Flow) -> Poll<()> { let _ = (cx, deliver); unimplemented!() }
}
/// Answer of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow { Continue, Pause }
