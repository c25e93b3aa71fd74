//! Table of open connections, ordered by activity and its age.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::signal::{Command, Signal};

/// Grace times of reserved and closing connections while the reserve is full and others wait to be
/// accepted: to send a request, to wait for other requests, and to read a response while input is
/// discarded. If the kernel's backlog fills up, it drops new connections, health checks among them.
const RESERVED_GRACE: Duration = Duration::from_millis(500);
const WAITING_GRACE: Duration = Duration::from_millis(50);
const DISCARDING_GRACE: Duration = Duration::from_millis(100);

/// Class of a connection, which decides what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// The connection may send any number of requests.
    Regular,
    /// The connection may send one request. A health check is served at once, any other request if
    /// fewer than the limit are being served.
    Reserved,
    /// The connection was told to close. A request that still arrives makes it reserved again.
    Closing,
    /// The connection was told to close at once and no longer counts.
    Killed,
}

/// Current activity of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Activity {
    /// Between two requests.
    Idle,
    /// Discarding input after the last response.
    Discarding,
    /// Without a whole request: newly opened, or receiving a head.
    AwaitingRequest,
    /// With a request that waits for other requests to finish.
    Waiting,
    /// With a request that is being served.
    Busy,
}

/// Set of connections that may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EvictionScope {
    /// Connections whose grace time has passed.
    PastGrace,
    /// All connections, because the limit must hold.
    Any,
}

/// Open connections with their tiers and activities.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: HashMap<u64, Entry>,
    /// Connections by tier and activity, the longest in that state first.
    pub(super) order: BTreeMap<(Tier, Activity, u64), u64>,
    /// Number of connections per tier.
    pub(super) counts: [usize; 4],
    /// Number of requests being served.
    pub(super) busy: usize,
    /// Source of both connection numbers and state stamps.
    last_number: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tier: Tier,
    activity: Activity,
    stamp: u64,
    since: Instant,
    pub(super) signal: Arc<Signal>,
}

impl Table {
    pub(super) fn insert(&mut self, tier: Tier, now: Instant, signal: Arc<Signal>) -> u64 {
        let (number, stamp) = (self.next_number(), self.next_number());
        let entry = Entry { tier, activity: Activity::AwaitingRequest, stamp, since: now, signal };
        self.order.insert((tier, entry.activity, stamp), number);
        self.counts[tier as usize] += 1;
        self.entries.insert(number, entry);
        number
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        self.busy -= usize::from(entry.activity == Activity::Busy);
        self.order.remove(&(entry.tier, entry.activity, entry.stamp));
        self.counts[entry.tier as usize] -= 1;
    }

    /// Moves a connection to a tier and an activity. With `now`, its time in that state restarts.
    pub(super) fn change(&mut self, number: u64, tier: Tier, activity: Activity, now: Option<Instant>) {
        let stamp = self.next_number();
        let Some(entry) = self.entries.get_mut(&number) else { return };
        self.order.remove(&(entry.tier, entry.activity, entry.stamp));
        self.counts[entry.tier as usize] -= 1;
        self.busy -= usize::from(entry.activity == Activity::Busy);
        self.busy += usize::from(activity == Activity::Busy);
        if let Some(now) = now {
            (entry.stamp, entry.since) = (stamp, now);
        }
        (entry.tier, entry.activity) = (tier, activity);
        self.order.insert((tier, activity, entry.stamp), number);
        self.counts[tier as usize] += 1;
    }

    pub(super) fn send_command(&mut self, number: u64, tier: Tier, command: Command) {
        if let Some(entry) = self.entries.get(&number) {
            entry.signal.send(command);
            self.change(number, tier, entry.activity, None);
        }
    }

    /// Returns the connection that has been in this state for the longest time, if that time is at
    /// least `age`.
    pub(super) fn oldest_in_state(
        &self,
        tier: Tier,
        activity: Activity,
        age: Duration,
        now: Instant,
    ) -> Option<u64> {
        let range = (tier, activity, 0)..=(tier, activity, u64::MAX);
        let (_, &number) = self.order.range(range).next()?;
        let entry = self.entries.get(&number)?;
        (now.saturating_duration_since(entry.since) >= age).then_some(number)
    }

    /// Returns the next connection to evict. A connection with a waiting request comes before one
    /// without a request, because the latter may be about to send a health check.
    pub(super) fn eviction_candidate(
        &self,
        tier: Tier,
        scope: EvictionScope,
        now: Instant,
    ) -> Option<(Activity, u64)> {
        [
            (Activity::Idle, Duration::ZERO),
            (Activity::Discarding, DISCARDING_GRACE),
            (Activity::Waiting, WAITING_GRACE),
            (Activity::AwaitingRequest, RESERVED_GRACE),
            (Activity::Busy, RESERVED_GRACE),
        ]
        .into_iter()
        .find_map(|(activity, grace)| {
            let age = if scope == EvictionScope::Any { Duration::ZERO } else { grace };
            self.oldest_in_state(tier, activity, age, now).map(|number| (activity, number))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
