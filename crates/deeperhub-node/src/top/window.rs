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
        }
    }
}

/// Counts of one or more [`TopWindow`]s.
#[derive(Debug, Default)]
pub(crate) struct TopReport {
    window: Duration,
    topics: Vec<SketchEntry>,
    clients: Vec<SketchEntry>,
}

impl TopReport {
    pub(crate) fn add(&mut self, other: Self) {
        self.window = self.window.max(other.window);
        self.topics.extend(other.topics);
        self.clients.extend(other.clients);
    }

    pub(crate) fn into_top(self, limit: usize) -> Top {
        Top {
            window: self.window,
            topics: busiest(self.topics, limit),
            clients: busiest(self.clients, limit),
        }
    }
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
        error: entry.error,
    };
    entries.into_iter().map(to_top_entry).collect()
}
