//! The busiest topics and clients, in bounded memory: the Space-Saving sketch of Metwally, Agrawal
//! and El Abbadi ("Efficient Computation of Frequent and Top-k Elements in Data Streams", 2005).
//! Each worker has its own sketches.
//!
//! Tracking starts with a request and stops some time after the last request. While it is off, it
//! costs one atomic load per round, and one per publish that no worker makes. Each message of a
//! client costs one branch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of names in a sketch, which bounds its memory. Each name with more than a 128th of the
/// total weight is certainly among them.
const SKETCH_CAPACITY: usize = 128;

/// Length of a window. Reports cover the current window and the previous one.
const TOP_WINDOW: Duration = Duration::from_secs(5);

/// Time that tracking continues after a request.
const TRACKING_TIMEOUT: Duration = Duration::from_secs(30);

/// Busiest topics and clients of the last 5 to 10 seconds on this node, busiest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Top {
    /// Time that the counts cover. Zero if tracking has just started.
    pub window: Duration,
    /// Topics, ranked by the sum of their messages and deliveries.
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
    /// Upper bound on the sum of messages and deliveries that the counts miss, because the name was
    /// not yet in the sketch. 0 if the counts are exact. The rank includes this number.
    pub error: u64,
}

#[derive(Debug, Clone)]
struct SketchEntry {
    name: Arc<str>,
    /// Weight by which the entry is ranked. It is at least the true weight, and at most `error`
    /// above it.
    weight: u64,
    /// Weight with which the entry was inserted. It is not part of the counts below.
    error: u64,
    messages: u64,
    deliveries: u64,
    bytes: u64,
}

/// Space-Saving sketch: the heaviest names of a stream, with their approximate weights. The weight
/// of a name is the sum of its messages and deliveries.
#[derive(Debug, Default)]
struct Sketch {
    entries: Vec<SketchEntry>,
    positions: HashMap<Arc<str>, usize, ahash::RandomState>,
    /// Lower bound of the entries' weights. All entries before `scan_from` are heavier.
    min_weight: u64,
    scan_from: usize,
}

impl Sketch {
    fn add(&mut self, name: &str, deliveries: u64, bytes: usize) {
        let weight = 1 + deliveries;
        let position = match self.positions.get(name) {
            Some(&position) => position,
            None => self.insert(name),
        };
        if let Some(entry) = self.entries.get_mut(position) {
            entry.weight += weight;
            entry.messages += 1;
            entry.deliveries += deliveries;
            entry.bytes += bytes as u64;
        }
    }

    /// Inserts a name and returns its position. Replaces a lightest entry if the sketch is full.
    fn insert(&mut self, name: &str) -> usize {
        let name: Arc<str> = name.into();
        let mut entry = SketchEntry {
            name: Arc::clone(&name),
            weight: 0,
            error: 0,
            messages: 0,
            deliveries: 0,
            bytes: 0,
        };
        let position = if self.entries.len() < SKETCH_CAPACITY {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let position = self.lightest();
            // The sketch may have removed this name before. Its earlier weight is unknown, but was
            // at most the weight of the entry that it replaces.
            (entry.weight, entry.error) = (self.min_weight, self.min_weight);
            if let Some(lightest) = self.entries.get_mut(position) {
                self.positions.remove(&lightest.name);
                *lightest = entry;
            }
            position
        };
        self.positions.insert(name, position);
        position
    }

    /// Returns the position of a lightest entry and sets `min_weight` to its weight. Weights only
    /// grow, so the next scan for the same weight can start after this entry.
    fn lightest(&mut self) -> usize {
        let unscanned = self.entries.iter().enumerate().skip(self.scan_from);
        if let Some((position, _)) = unscanned.into_iter().find(|(_, entry)| entry.weight == self.min_weight)
        {
            self.scan_from = position + 1;
            return position;
        }
        let weights = self.entries.iter().map(|entry| entry.weight).enumerate();
        let (position, min_weight) = weights.min_by_key(|&(_, weight)| weight).unwrap_or_default();
        (self.min_weight, self.scan_from) = (min_weight, position + 1);
        position
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.positions.clear();
        (self.min_weight, self.scan_from) = (0, 0);
    }
}

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
fn busiest(entries: Vec<SketchEntry>, limit: usize) -> Vec<TopEntry> {
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

/// Switches tracking on and off, and counts the publishes that no worker makes: those of backends
/// and of other nodes.
#[derive(Debug)]
pub(crate) struct TopTracker {
    started: Instant,
    /// End of the tracking, in milliseconds since `started`. 0 if tracking is off.
    track_until_ms: AtomicU64,
    non_worker_window: Mutex<Option<TopWindow>>,
}

impl TopTracker {
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, track_until_ms: AtomicU64::new(0), non_worker_window: Mutex::new(None) }
    }

    /// Starts tracking, or extends it.
    pub(crate) fn keep_tracking(&self, now: Instant) {
        self.track_until_ms.fetch_max(self.elapsed_ms(now + TRACKING_TIMEOUT), Ordering::Relaxed);
    }

    pub(crate) fn is_tracking(&self, now: Instant) -> bool {
        match self.track_until_ms.load(Ordering::Relaxed) {
            0 => false,
            track_until_ms => self.elapsed_ms(now) < track_until_ms,
        }
    }

    /// Counts a publish of a backend or of another node.
    pub(crate) fn publish(&self, topic: &str, deliveries: u64, bytes: usize) {
        // Avoids reading the clock while tracking is off.
        if self.track_until_ms.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        let is_tracking = self.is_tracking(now);
        let mut non_worker_window = self.non_worker_window.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_tracking {
            *non_worker_window = None;
            self.stop_tracking(now);
            return;
        }
        non_worker_window.get_or_insert_with(|| TopWindow::new(now)).publish(topic, deliveries, bytes, now);
    }

    /// Returns the counts of publishes that no worker made.
    pub(crate) fn report(&self, now: Instant) -> TopReport {
        let mut non_worker_window = self.non_worker_window.lock().unwrap_or_else(PoisonError::into_inner);
        non_worker_window.get_or_insert_with(|| TopWindow::new(now)).report(now)
    }

    /// Switches tracking off if its time is over.
    fn stop_tracking(&self, now: Instant) {
        let track_until_ms = self.track_until_ms.load(Ordering::Relaxed);
        if track_until_ms != 0 && self.elapsed_ms(now) >= track_until_ms {
            let _ =
                self.track_until_ms.compare_exchange(track_until_ms, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn elapsed_ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_names_stay_among_many_light_ones() {
        let mut sketch = Sketch::default();
        for round in 0..20_000_u32 {
            sketch.add(&format!("light.{round}"), 0, 1);
            sketch.add(if round % 2 == 0 { "heavy.a" } else { "heavy.b" }, 3, 10);
        }
        assert!(sketch.entries.len() == SKETCH_CAPACITY && sketch.positions.len() == SKETCH_CAPACITY);
        let top = busiest(sketch.entries, 2);
        assert_eq!(top.iter().map(|busy| busy.name.as_str()).collect::<Vec<_>>(), ["heavy.a", "heavy.b"]);
        for busy in top {
            let error = busy.error;
            assert_eq!((busy.messages, busy.deliveries, busy.bytes), (10_000, 30_000, 100_000), "{error}");
        }
    }

    #[test]
    fn a_weight_exceeds_the_truth_by_at_most_the_error() {
        let mut sketch = Sketch::default();
        let mut truth: HashMap<String, u64> = HashMap::new();
        // Park-Miller generator: skewed numbers without a dependency.
        let mut state = 42_u64;
        for _ in 0..50_000 {
            state = state * 48_271 % 0x7fff_ffff;
            let name = format!("{}", (state % 2000) * (state % 7) / 6);
            sketch.add(&name, 0, 1);
            *truth.entry(name).or_default() += 1;
        }
        for entry in &sketch.entries {
            let truth = truth[&*entry.name];
            assert!(entry.weight >= truth && entry.weight - entry.error <= truth, "{entry:?} {truth}");
            assert!(entry.error <= 50_000 / SKETCH_CAPACITY as u64);
        }
    }

    #[test]
    fn a_lightest_name_is_replaced() {
        let mut sketch = Sketch::default();
        let mut state = 7_u64;
        for _ in 0..20_000 {
            state = state * 48_271 % 0x7fff_ffff;
            let name = format!("{}", state % 300);
            let is_known = sketch.positions.contains_key(name.as_str());
            let least = sketch.entries.iter().map(|entry| entry.weight).min().unwrap_or(0);
            let is_full = sketch.entries.len() == SKETCH_CAPACITY;
            sketch.add(&name, state % 5, 1);
            if is_full && !is_known {
                let entry = &sketch.entries[sketch.positions[name.as_str()]];
                assert_eq!(entry.error, least);
            }
        }
    }

    #[test]
    fn counts_cover_the_last_two_windows() {
        let start = Instant::now();
        let mut window = TopWindow::new(start);
        window.publish("a", 5, 100, start);
        let report = |window: &mut TopWindow, at| {
            let mut report = TopReport::default();
            report.add(window.report(start + at));
            report.into_top(10)
        };
        assert_eq!(report(&mut window, Duration::from_secs(1)).window, Duration::from_secs(1));
        let top = report(&mut window, Duration::from_secs(6));
        assert_eq!((top.window, top.topics.len()), (Duration::from_secs(6), 1));
        window.publish("a", 5, 100, start + Duration::from_secs(7));
        let top = report(&mut window, Duration::from_secs(8));
        assert_eq!((top.topics[0].messages, top.topics[0].deliveries), (2, 10));
        let top = report(&mut window, Duration::from_secs(11));
        assert_eq!((top.window, top.topics[0].messages), (Duration::from_secs(6), 1));
        assert_eq!(report(&mut window, Duration::from_secs(60)).topics, []);
    }

    #[test]
    fn tracking_stops_after_its_timeout() {
        let start = Instant::now();
        let tracker = TopTracker::new(start);
        assert!(!tracker.is_tracking(start));
        tracker.keep_tracking(start);
        assert!(tracker.is_tracking(start + TRACKING_TIMEOUT / 2));
        assert!(!tracker.is_tracking(start + TRACKING_TIMEOUT));
    }
}
