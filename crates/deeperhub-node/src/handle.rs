use deeperhub_events::{EventFilter, EventStream};
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic, message::TraceContext};

/// A running node, for backends and embedding programs. Cheap to clone, `Send + Sync`.
#[derive(Debug, Clone)]
pub struct NodeHandle {}

/// What a publish or a send reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// Subscriptions matched on this node (publish), or connections reached (sends).
    pub count: u64,
    /// The cluster could not be reached: other nodes did not get it.
    pub cluster_unavailable: bool,
}

/// One connection as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientInfo {
    /// Its name.
    pub client_id: ClientId,
    /// The user of its token; `None` without one.
    pub user: Option<String>,
    /// Topics and patterns it is subscribed to.
    pub subscriptions: Vec<String>,
}

/// One topic or pattern that is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// The topic, or the pattern as such.
    pub topic: String,
    /// Its subscribers on this node.
    pub subscribers: u64,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// At most as many as asked for.
    pub items: Vec<T>,
    /// Where to go on; `None` at the end. URL-safe.
    pub next_cursor: Option<String>,
}

/// No connection of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no client of this id is connected")]
pub struct ClientNotFound;

/// The cursor does not come from an earlier page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cursor is not one that a page gave")]
pub struct CursorError;

impl NodeHandle {
    /// Publishes to a topic.
    pub fn publish(&self, topic: &Topic<'_>, message: RawJson<'_>, trace: &TraceContext<'_>) -> Delivered { let _ = (topic, message, trace); unimplemented!() }
    /// Sends an object (see `message::check_server_object`) to one client.
    pub async fn send_to_client(&self, client: &ClientId, message: RawJson<'_>) -> Result<(), ClientNotFound> { let _ = (client, message); unimplemented!() }
    /// Sends to every connection of a user.
    pub async fn send_to_user(&self, user: &str, message: RawJson<'_>) -> Delivered { let _ = (user, message); unimplemented!() }
    /// Sends to every client.
    pub async fn broadcast(&self, message: RawJson<'_>) -> Delivered { let _ = message; unimplemented!() }
    /// Closes a connection with 4003.
    pub async fn disconnect(&self, client: &ClientId) -> Result<(), ClientNotFound> { let _ = client; unimplemented!() }
    /// One connection.
    pub async fn client(&self, client: &ClientId) -> Result<ClientInfo, ClientNotFound> { let _ = client; unimplemented!() }
    /// Connections, a page at a time. A client that stays connected through a whole listing appears exactly once.
    pub async fn clients(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ClientInfo>, CursorError> { let _ = (cursor, limit); unimplemented!() }
    /// What is subscribed to, a page at a time.
    pub fn topics(&self, cursor: Option<&str>, limit: usize) -> Result<Page<TopicInfo>, CursorError> { let _ = (cursor, limit); unimplemented!() }
    /// One topic or pattern; one that nobody subscribes to has 0 subscribers.
    pub fn topic(&self, topic: &Subscription<'_>) -> TopicInfo { let _ = topic; unimplemented!() }
    /// What happens from now on. `None`: too many observers.
    pub fn events(&self, filter: EventFilter) -> Option<EventStream> { let _ = filter; unimplemented!() }
    /// Where the node is in its life.
    pub fn phase(&self) -> crate::Phase { unimplemented!() }
    /// Tells of changes of [`Self::phase`].
    pub fn watch_phase(&self) -> tokio::sync::watch::Receiver<crate::Phase> { unimplemented!() }
    /// All metrics as Prometheus (OpenMetrics) text.
    pub fn metrics_text(&self) -> String { unimplemented!() }
    /// Starts the drain (or waits for the one under way): no new connections, the others are closed with 1001
    /// spread over `time`; returns when all are gone or the time is over.
    pub async fn drain(&self, time: std::time::Duration) { let _ = time; unimplemented!() }
}
