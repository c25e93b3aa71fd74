//! Who and what is busiest, in bounded memory: the Space-Saving sketch of Metwally, Agrawal and El Abbadi ("Efficient
//! Computation of Frequent and Top-k Elements in Data Streams", 2005), one for each worker.
//!
//! Nobody counts until someone asks, and for a while after that: what is off costs one look at a flag a round, and one
//! branch for each message that a client sends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names that a sketch keeps. What has more than a 128th of all the weight is certainly among them.
const KEPT: usize = 128;

/// Counts are those of the window that is full and of the one that fills.
const WINDOW: Duration = Duration::from_secs(5);

/// How long counting goes on after someone asked.
const LINGER: Duration = Duration::from_secs(30);

/// The busiest topics and clients of the last 5 to 10 seconds on this node, the busiest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Top {
    /// The time that the counts are of; zero when counting has only just begun.
    pub window: Duration,
    /// By messages and deliveries together.
    pub topics: Vec<Busy>,
    /// By messages sent to the hub.
    pub clients: Vec<Busy>,
}

/// A topic or a client with what it did within the window.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Busy {
    /// The topic, or the client's id.
    pub name: String,
    /// Messages published to the topic, or sent by the client.
    pub messages: u64,
    /// Subscriptions that the topic's messages matched on this node; 0 for clients.
    pub deliveries: u64,
    /// Bytes of the messages, each counted once.
    pub bytes: u64,
    /// By how much the rank (messages and deliveries together) may be too high: the name may have pushed out others.
    pub error: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    name: Arc<str>,
    /// What it is ranked by; at least its true value, at most `error` above it.
    weight: u64,
    error: u64,
    messages: u64,
    deliveries: u64,
    bytes: u64,
}

/// The heaviest names of a stream.
#[derive(Debug, Default)]
struct Sketch {
    entries: Vec<Entry>,
    places: HashMap<Arc<str>, usize, ahash::RandomState>,
    /// No entry is lighter than this; some may be as light, from `hand` on.
    least: u64,
    hand: usize,
}

impl Sketch {
    fn add(&mut self, name: &str, deliveries: u64, bytes: usize) {
        let weight = 1 + deliveries;
        let place = match self.places.get(name) {
            Some(&place) => place,
            None => self.take_in(name),
        };
        if let Some(entry) = self.entries.get_mut(place) {
            entry.weight += weight;
            entry.messages += 1;
            entry.deliveries += deliveries;
            entry.bytes += bytes as u64;
        }
    }

    /// Makes room for a name, in the place of the lightest when there is none.
    fn take_in(&mut self, name: &str) -> usize {
        let name: Arc<str> = name.into();
        let mut entry =
            Entry { name: Arc::clone(&name), weight: 0, error: 0, messages: 0, deliveries: 0, bytes: 0 };
        let place = if self.entries.len() < KEPT {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let place = self.lightest();
            let least = self.least;
            // It may have been here before, and as heavy as the one it pushes out.
            (entry.weight, entry.error) = (least, least);
            if let Some(lightest) = self.entries.get_mut(place) {
                self.places.remove(&lightest.name);
                *lightest = entry;
            }
            place
        };
        self.places.insert(name, place);
        place
    }

    /// The place of an entry that none is lighter than. Weights only grow, so that a walk over all of them is due but
    /// once for all that are as light as the lightest.
    fn lightest(&mut self) -> usize {
        let from_hand = self.entries.iter().enumerate().skip(self.hand);
        if let Some((place, _)) = from_hand.into_iter().find(|(_, entry)| entry.weight == self.least) {
            self.hand = place + 1;
            return place;
        }
        let weights = self.entries.iter().map(|entry| entry.weight).enumerate();
        let (place, least) = weights.min_by_key(|&(_, weight)| weight).unwrap_or_default();
        (self.least, self.hand) = (least, place + 1);
        place
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.places.clear();
        (self.least, self.hand) = (0, 0);
    }
}

/// One counter's windows.
#[derive(Debug)]
pub(crate) struct Counting {
    since: Instant,
    full_since: Option<Instant>,
    topics: [Sketch; 2],
    clients: [Sketch; 2],
}

impl Counting {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, full_since: None, topics: Default::default(), clients: Default::default() }
    }

    /// A message was published to a topic.
    pub(crate) fn publish(&mut self, topic: &str, deliveries: u64, bytes: usize, now: Instant) {
        self.turn(now);
        self.topics[0].add(topic, deliveries, bytes);
    }

    /// A client sent something.
    pub(crate) fn message(&mut self, client: &str, bytes: usize, now: Instant) {
        self.turn(now);
        self.clients[0].add(client, 0, bytes);
    }

    /// Begins the next window when this one is over.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < WINDOW {
            return;
        }
        for sketches in [&mut self.topics, &mut self.clients] {
            sketches.swap(0, 1);
            sketches[0].clear();
            if age >= 2 * WINDOW {
                // Nothing came for so long that the full one is over too.
                sketches[1].clear();
            }
        }
        self.full_since = Some(if age >= 2 * WINDOW { now - WINDOW } else { self.since });
        self.since = if age >= 2 * WINDOW { now } else { self.since + WINDOW };
    }

    pub(crate) fn report(&mut self, now: Instant) -> Report {
        self.turn(now);
        Report {
            window: now.saturating_duration_since(self.full_since.unwrap_or(self.since)),
            topics: self.topics.iter().flat_map(|sketch| sketch.entries.iter().cloned()).collect(),
            clients: self.clients.iter().flat_map(|sketch| sketch.entries.iter().cloned()).collect(),
        }
    }
}

/// What one counter says.
#[derive(Debug, Default)]
pub(crate) struct Report {
    window: Duration,
    topics: Vec<Entry>,
    clients: Vec<Entry>,
}

impl Report {
    pub(crate) fn add(&mut self, other: Self) {
        self.window = self.window.max(other.window);
        self.topics.extend(other.topics);
        self.clients.extend(other.clients);
    }

    pub(crate) fn top(self, limit: usize) -> Top {
        Top {
            window: self.window,
            topics: busiest(self.topics, limit),
            clients: busiest(self.clients, limit),
        }
    }
}

fn busiest(entries: Vec<Entry>, limit: usize) -> Vec<Busy> {
    let mut by_name: HashMap<Arc<str>, Entry> = HashMap::new();
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
    let busy = |entry: Entry| Busy {
        name: entry.name.as_ref().to_owned(),
        messages: entry.messages,
        deliveries: entry.deliveries,
        bytes: entry.bytes,
        error: entry.error,
    };
    entries.into_iter().map(busy).collect()
}

/// Whether anyone wants to know, and the count of what comes by no worker.
#[derive(Debug)]
pub(crate) struct Wanted {
    started: Instant,
    /// Milliseconds since the start; 0: nobody asked yet.
    until: AtomicU64,
    backends: Mutex<Option<Counting>>,
}

impl Wanted {
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, until: AtomicU64::new(0), backends: Mutex::new(None) }
    }

    /// Someone asks: counting goes on for a while from now.
    pub(crate) fn want(&self, now: Instant) {
        self.until.fetch_max(self.milliseconds(now + LINGER), Ordering::Relaxed);
    }

    pub(crate) fn is_wanted(&self, now: Instant) -> bool {
        match self.until.load(Ordering::Relaxed) {
            0 => false,
            until => self.milliseconds(now) < until,
        }
    }

    /// A backend, or a client of another node, published something.
    pub(crate) fn publish(&self, topic: &str, deliveries: u64, bytes: usize) {
        // Without a look at the clock while nobody ever asked.
        if self.until.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        let wanted = self.is_wanted(now);
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        if !wanted {
            *backends = None;
            self.forget(now);
            return;
        }
        backends.get_or_insert_with(|| Counting::new(now)).publish(topic, deliveries, bytes, now);
    }

    /// What came by no worker.
    pub(crate) fn report(&self, now: Instant) -> Report {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.get_or_insert_with(|| Counting::new(now)).report(now)
    }

    /// Nobody asked for long: the clock need not be looked at any more.
    fn forget(&self, now: Instant) {
        let until = self.until.load(Ordering::Relaxed);
        if until != 0 && self.milliseconds(now) >= until {
            let _ = self.until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_names_stay_however_many_light_ones_pass() {
        let mut sketch = Sketch::default();
        for round in 0..20_000_u32 {
            sketch.add(&format!("light.{round}"), 0, 1);
            sketch.add(if round % 2 == 0 { "heavy.a" } else { "heavy.b" }, 3, 10);
        }
        assert!(sketch.entries.len() == KEPT && sketch.places.len() == KEPT);
        let top = busiest(sketch.entries, 2);
        assert_eq!(top.iter().map(|busy| busy.name.as_str()).collect::<Vec<_>>(), ["heavy.a", "heavy.b"]);
        for busy in top {
            let error = busy.error;
            assert_eq!((busy.messages, busy.deliveries, busy.bytes), (10_000, 30_000, 100_000), "{error}");
        }
    }

    #[test]
    fn a_weight_is_never_below_the_truth_and_above_it_at_most_by_the_error() {
        let mut sketch = Sketch::default();
        let mut truth: HashMap<String, u64> = HashMap::new();
        // A generator of Park and Miller's kind: skewed numbers without a dependency.
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
            assert!(entry.error <= 50_000 / KEPT as u64);
        }
    }

    #[test]
    fn the_name_that_goes_is_always_one_of_the_lightest() {
        let mut sketch = Sketch::default();
        let mut state = 7_u64;
        for _ in 0..20_000 {
            state = state * 48_271 % 0x7fff_ffff;
            let name = format!("{}", state % 300);
            let is_known = sketch.places.contains_key(name.as_str());
            let least = sketch.entries.iter().map(|entry| entry.weight).min().unwrap_or(0);
            let is_full = sketch.entries.len() == KEPT;
            sketch.add(&name, state % 5, 1);
            if is_full && !is_known {
                let entry = &sketch.entries[sketch.places[name.as_str()]];
                assert_eq!(entry.error, least);
            }
        }
    }

    #[test]
    fn counts_are_of_the_last_windows() {
        let start = Instant::now();
        let mut counting = Counting::new(start);
        counting.publish("a", 5, 100, start);
        let report = |counting: &mut Counting, at| {
            let mut report = Report::default();
            report.add(counting.report(start + at));
            report.top(10)
        };
        assert_eq!(report(&mut counting, Duration::from_secs(1)).window, Duration::from_secs(1));
        let top = report(&mut counting, Duration::from_secs(6));
        assert_eq!((top.window, top.topics.len()), (Duration::from_secs(6), 1));
        counting.publish("a", 5, 100, start + Duration::from_secs(7));
        let top = report(&mut counting, Duration::from_secs(8));
        assert_eq!((top.topics[0].messages, top.topics[0].deliveries), (2, 10));
        let top = report(&mut counting, Duration::from_secs(11));
        assert_eq!((top.window, top.topics[0].messages), (Duration::from_secs(6), 1));
        assert_eq!(report(&mut counting, Duration::from_secs(60)).topics, []);
    }

    #[test]
    fn counting_ends_some_time_after_the_last_question() {
        let start = Instant::now();
        let wanted = Wanted::new(start);
        assert!(!wanted.is_wanted(start));
        wanted.want(start);
        assert!(wanted.is_wanted(start + LINGER / 2));
        assert!(!wanted.is_wanted(start + LINGER));
    }
}
