//! Counts of the last seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::report::{Top, TopEntry};
use super::sketch::{Sketch, SketchEntry};

/// Length of a window. Reports cover the current window and the previous one.
const TOP_WINDOW: Duration = Duration::from_secs(5);

/// Counts of the current and the previous window, of one worker or of a [`TopTracker`].
#[derive(Debug)]
pub(crate) struct TopWindow {
    since: Instant,
    previous_since: Option<Instant>,
    /// Sketches of the current and of the previous window.
    topics: [Sketch; 2],
    clients: [Sketch; 2],
}

impl TopWindow {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, previous_since: None, topics: Default::default(), clients: Default::default() }
    }

    /// Counts a message published to a topic.
    pub(crate) fn publish(&mut self, topic: &str, deliveries: u64, bytes: usize, now: Instant) {
        self.rotate(now);
        self.topics[0].add(topic, deliveries, bytes);
    }

    /// Counts a message of a client.
    pub(crate) fn message(&mut self, client: &str, bytes: usize, now: Instant) {
        self.rotate(now);
        self.clients[0].add(client, 0, bytes);
    }

    /// Starts the next window if the current one is over.
    fn rotate(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < TOP_WINDOW {
            return;
        }
        for sketches in [&mut self.topics, &mut self.clients] {
            sketches.swap(0, 1);
            sketches[0].clear();
            if age >= 2 * TOP_WINDOW {
                // The sketch is older than the previous window.
                sketches[1].clear();
            }
        }
        self.previous_since = Some(if age >= 2 * TOP_WINDOW { now - TOP_WINDOW } else { self.since });
        self.since = if age >= 2 * TOP_WINDOW { now } else { self.since + TOP_WINDOW };
    }

    pub(crate) fn report(&mut self, now: Instant) -> TopReport {
        self.rotate(now);
        TopReport {
            window: now.saturating_duration_since(self.previous_since.unwrap_or(self.since)),
            topics: self.topics.iter().flat_map(|sketch| sketch.entries.iter().cloned()).collect(),
            clients: self.clients.iter().flat_map(|sketch| sketch.entries.iter().cloned()).collect(),
            behind: Vec::new(),
        }
    }
}

/// Counts of one or more [`TopWindow`]s.
#[derive(Debug, Default)]
pub(crate) struct TopReport {
    window: Duration,
    topics: Vec<SketchEntry>,
    clients: Vec<SketchEntry>,
    /// Topics with subscriptions that are behind, and their number.
    behind: Vec<(Arc<str>, u64)>,
}

impl TopReport {
    /// Adds the topics of a worker with subscriptions that are behind, and their number.
    pub(crate) fn with_behind(self, behind: Vec<(Arc<str>, u64)>) -> Self {
        Self { behind, ..self }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.window = self.window.max(other.window);
        self.topics.extend(other.topics);
        self.clients.extend(other.clients);
        self.behind.extend(other.behind);
    }

    pub(crate) fn into_top(self, limit: usize) -> Top {
        Top {
            window: self.window,
            topics: with_behind(busiest(self.topics, limit), self.behind, limit),
            clients: busiest(self.clients, limit),
        }
    }
}

/// Adds the numbers of subscriptions that are behind to topics. Topics without messages follow the
/// others.
fn with_behind(mut topics: Vec<TopEntry>, behind: Vec<(Arc<str>, u64)>, limit: usize) -> Vec<TopEntry> {
    let mut by_name: HashMap<Arc<str>, u64> = HashMap::new();
    for (name, count) in behind {
        *by_name.entry(name).or_default() += count;
    }
    for topic in &mut topics {
        topic.behind = by_name.remove(topic.name.as_str()).unwrap_or(0);
    }
    let mut others: Vec<_> = by_name.into_iter().collect();
    others.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let free = limit.saturating_sub(topics.len());
    topics.extend(others.into_iter().take(free).map(|(name, behind)| TopEntry {
        name: name.as_ref().to_owned(),
        messages: 0,
        deliveries: 0,
        bytes: 0,
        behind,
        error: 0,
    }));
    topics
}

/// Sums the entries of each name, and returns the heaviest names.
pub(super) fn busiest(entries: Vec<SketchEntry>, limit: usize) -> Vec<TopEntry> {
    let mut by_name: HashMap<Arc<str>, SketchEntry> = HashMap::new();
    for entry in entries {
        match by_name.get_mut(&entry.name) {
            None => {
                by_name.insert(Arc::clone(&entry.name), entry);
            }
            Some(sum) => {
                sum.weight += entry.weight;
                sum.error += entry.error;
                sum.messages += entry.messages;
                sum.deliveries += entry.deliveries;
                sum.bytes += entry.bytes;
            }
        }
    }
    let mut entries: Vec<_> = by_name.into_values().collect();
    entries.sort_unstable_by(|a, b| b.weight.cmp(&a.weight).then_with(|| a.name.cmp(&b.name)));
    entries.truncate(limit);
    let to_top_entry = |entry: SketchEntry| TopEntry {
        name: entry.name.as_ref().to_owned(),
        messages: entry.messages,
        deliveries: entry.deliveries,
        bytes: entry.bytes,
        behind: 0,
        error: entry.error,
    };
    entries.into_iter().map(to_top_entry).collect()
}
