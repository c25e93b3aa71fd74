//! The busiest topics and clients, as values.

use std::time::Duration;

/// Busiest topics and clients of the last 5 to 10 seconds on this node, busiest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Top {
    /// Time that the counts cover. Zero if tracking has just started.
    pub window: Duration,
    /// Topics, ranked by the sum of their messages and deliveries, then by the subscriptions that
    /// are behind.
    pub topics: Vec<TopEntry>,
    /// Clients, ranked by the messages that they sent.
    pub clients: Vec<TopEntry>,
}

/// Topic or client with its counts within the window.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopEntry {
    /// Topic or client ID.
    pub name: String,
    /// Messages published to the topic, or sent by the client.
    pub messages: u64,
    /// Subscriptions on this node that the topic's messages matched. 0 for clients.
    pub deliveries: u64,
    /// Bytes of the messages, each counted once.
    pub bytes: u64,
    /// Subscriptions to exactly this topic on this node that are behind its newest message. 0 for
    /// clients.
    pub behind: u64,
    /// Upper bound on the sum of messages and deliveries that the counts miss, because the name was
    /// not yet in the sketch. 0 if the counts are exact. The rank includes this number.
    pub error: u64,
}
