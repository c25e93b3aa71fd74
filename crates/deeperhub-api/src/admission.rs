//! Which connections may be open at one time, and which give way.
//!
//! Regular connections are bounded by a setting. Over it, the connection that has been idle the longest gives way. When
//! none is idle, a few reserved connections answer health checks and turn everything else away, so that a caller
//! always gets an answer and memory and files stay bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::ApiMetrics;

/// Connections beyond [`max_connections`](crate::ApiConfig::max_connections) that are open to answer health checks or to
/// turn requests away, and as many again on their way out.
pub const RESERVED_CONNECTIONS: usize = 64;

/// Time that a connection without a whole request is left alone. A connection that served a request gives way at once,
/// since its client knows that idle connections end.
const SILENT_GRACE: Duration = Duration::from_secs(1);

/// Time that a request waits for a regular place before it is turned away.
const PLACE_WAIT: Duration = Duration::from_secs(1);

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Everything.
    Regular,
    /// Health checks; other requests wait for a regular place.
    Reserved,
    /// It was asked to end. A request that arrives nevertheless makes it reserved again.
    Leaving,
    /// It was told to end at once and counts no more.
    Gone,
}

/// What a connection is doing, the first to give way first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Activity {
    /// Between two requests.
    Idle,
    /// Without a whole request yet, or with input that is discarded after the last answer.
    Silent,
    /// With a request that waits for a regular place.
    Waiting,
    /// With a request that is being served.
    Busy,
}

/// What a connection is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Command {
    /// Nothing.
    Stay,
    /// End after the request that is under way: the server stops.
    Drain,
    /// End unless a request has arrived.
    Leave,
    /// End now.
    Kill,
}

impl Command {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Stay,
            1 => Self::Drain,
            2 => Self::Leave,
            _ => Self::Kill,
        }
    }
}

/// The way from outside to a connection's task.
#[derive(Debug, Default)]
struct Signal {
    command: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl Signal {
    fn send(&self, command: Command) {
        self.command.fetch_max(command as u8, Ordering::AcqRel);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// All connections of a server.
#[derive(Debug)]
pub(crate) struct Admission {
    max_connections: usize,
    metrics: ApiMetrics,
    table: Mutex<Table>,
    /// A regular place is free, or a connection is idle.
    room: Notify,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    /// By what they may do and do, the longest in that state first.
    order: BTreeMap<(Tier, Activity, u64), u64>,
    counts: [usize; 4],
    /// Of connections and of their states alike.
    next_number: u64,
}

#[derive(Debug)]
struct Entry {
    tier: Tier,
    activity: Activity,
    stamp: u64,
    since: Instant,
    signal: Arc<Signal>,
}

impl Admission {
    pub(crate) fn new(max_connections: usize, metrics: ApiMetrics) -> Arc<Self> {
        let table = Mutex::default();
        Arc::new(Self { max_connections: max_connections.max(1), metrics, table, room: Notify::new() })
    }

    /// Takes in a connection that was accepted, whatever it takes of others.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> ConnectionPermit {
        let signal = Arc::<Signal>::default();
        let mut table = self.lock();
        let tier = if self.has_room(&mut table, now) { Tier::Regular } else { Tier::Reserved };
        let number = table.insert(tier, now, Arc::clone(&signal));
        self.trim(&mut table);
        self.metrics.set_connections(table.open());
        drop(table);
        if tier == Tier::Reserved {
            tracing::warn!(
                limit = "max_api_connections",
                max = self.max_connections,
                "Server API connection limit reached"
            );
        }
        ConnectionPermit { admission: Arc::clone(self), number, signal }
    }

    /// Asks all connections to end after the request that is under way.
    pub(crate) fn drain(&self) {
        self.lock().entries.values().for_each(|entry| entry.signal.send(Command::Drain));
    }

    /// Returns `true` if there is a regular place, if need be by asking an idle connection to leave.
    fn has_room(&self, table: &mut Table, now: Instant) -> bool {
        if table.counts[Tier::Regular as usize] < self.max_connections {
            return true;
        }
        let silent = |table: &Table| {
            let number = table.first(Tier::Regular, Activity::Silent)?;
            let entry = table.entries.get(&number)?;
            (now.saturating_duration_since(entry.since) >= SILENT_GRACE).then_some(number)
        };
        let Some(victim) = table.first(Tier::Regular, Activity::Idle).or_else(|| silent(table)) else {
            return false;
        };
        self.metrics.connection_evicted();
        table.command(victim, Tier::Leaving, Command::Leave);
        true
    }

    /// Ends what is beyond the reserve.
    fn trim(&self, table: &mut Table) {
        while table.counts[Tier::Reserved as usize] > RESERVED_CONNECTIONS
            && let Some((activity, victim)) = table.oldest(Tier::Reserved)
        {
            self.metrics.connection_evicted();
            let command = if activity == Activity::Busy { Command::Kill } else { Command::Leave };
            table.command(victim, Tier::Leaving, command);
        }
        while table.counts[Tier::Leaving as usize] > RESERVED_CONNECTIONS
            && let Some((_, victim)) = table.oldest(Tier::Leaving)
        {
            table.command(victim, Tier::Gone, Command::Kill);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change below is complete before anything can fail.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, tier: Tier, now: Instant, signal: Arc<Signal>) -> u64 {
        let (number, stamp) = (self.number(), self.number());
        let entry = Entry { tier, activity: Activity::Silent, stamp, since: now, signal };
        self.order.insert((tier, entry.activity, stamp), number);
        self.counts[tier as usize] += 1;
        self.entries.insert(number, entry);
        number
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn remove(&mut self, number: u64) -> Option<Tier> {
        let entry = self.entries.remove(&number)?;
        self.order.remove(&(entry.tier, entry.activity, entry.stamp));
        self.counts[entry.tier as usize] -= 1;
        Some(entry.tier)
    }

    /// Puts a connection where it belongs; with another activity, the time that it spends there begins.
    fn change(&mut self, number: u64, tier: Tier, activity: Activity, now: Option<Instant>) {
        let stamp = self.number();
        let Some(entry) = self.entries.get_mut(&number) else { return };
        self.order.remove(&(entry.tier, entry.activity, entry.stamp));
        self.counts[entry.tier as usize] -= 1;
        if let Some(now) = now {
            (entry.stamp, entry.since) = (stamp, now);
        }
        (entry.tier, entry.activity) = (tier, activity);
        self.order.insert((tier, activity, entry.stamp), number);
        self.counts[tier as usize] += 1;
    }

    fn command(&mut self, number: u64, tier: Tier, command: Command) {
        if let Some(entry) = self.entries.get(&number) {
            entry.signal.send(command);
            self.change(number, tier, entry.activity, None);
        }
    }

    fn first(&self, tier: Tier, activity: Activity) -> Option<u64> {
        let range = (tier, activity, 0)..=(tier, activity, u64::MAX);
        self.order.range(range).next().map(|(_, &number)| number)
    }

    /// The one that gives way first.
    fn oldest(&self, tier: Tier) -> Option<(Activity, u64)> {
        let range = (tier, Activity::Idle, 0)..=(tier, Activity::Busy, u64::MAX);
        self.order.range(range).next().map(|(&(_, activity, _), &number)| (activity, number))
    }

    fn open(&self) -> usize {
        self.entries.len()
    }
}

/// One connection's part. Dropping it gives its place back.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    admission: Arc<Admission>,
    number: u64,
    signal: Arc<Signal>,
}

impl ConnectionPermit {
    /// Notes what the connection does now.
    pub(crate) fn set(&self, activity: Activity) {
        let mut table = self.admission.lock();
        if let Some(&Entry { tier, .. }) = table.entries.get(&self.number) {
            table.change(self.number, tier, activity, Some(Instant::now()));
        }
        drop(table);
        if activity == Activity::Idle {
            self.admission.room.notify_one();
        }
    }

    /// Notes that a whole request has arrived, and returns what the connection may do with it.
    pub(crate) fn begin_request(&self) -> Tier {
        let mut table = self.admission.lock();
        let Some(&Entry { tier, .. }) = table.entries.get(&self.number) else { return Tier::Gone };
        let tier = if tier == Tier::Leaving { Tier::Reserved } else { tier };
        table.change(self.number, tier, Activity::Busy, Some(Instant::now()));
        if tier == Tier::Reserved {
            // What it was told is void: it is not idle.
            let (leave, stay) = (Command::Leave as u8, Command::Stay as u8);
            let _ = self.signal.command.compare_exchange(leave, stay, Ordering::AcqRel, Ordering::Relaxed);
            self.admission.trim(&mut table);
        }
        tier
    }

    /// Waits for a regular place. Returns `false` if there is none in time, or others need the reserved one.
    pub(crate) async fn wait_for_place(&self) -> bool {
        let deadline = Instant::now() + PLACE_WAIT;
        self.set(Activity::Waiting);
        let found = loop {
            let room = self.admission.room.notified();
            if self.promote() {
                break true;
            }
            tokio::select! {
                () = room => {}
                () = tokio::time::sleep_until(deadline) => break false,
                () = std::future::poll_fn(|cx| match self.poll_command(cx) {
                    Command::Leave | Command::Kill => Poll::Ready(()),
                    Command::Stay | Command::Drain => Poll::Pending,
                }) => break false,
            }
        };
        self.set(Activity::Busy);
        if !found {
            self.admission.metrics.connection_refused();
        }
        found
    }

    fn promote(&self) -> bool {
        let mut table = self.admission.lock();
        if table.entries.get(&self.number).is_none_or(|entry| entry.tier != Tier::Reserved) {
            return false;
        }
        let room = self.admission.has_room(&mut table, Instant::now());
        if room {
            table.change(self.number, Tier::Regular, Activity::Busy, None);
        }
        room
    }

    /// What the connection is told; the task is woken when that changes.
    pub(crate) fn poll_command(&self, cx: &Context<'_>) -> Command {
        let mut waker = self.signal.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Command::of(self.signal.command.load(Ordering::Acquire))
    }

    pub(crate) fn metrics(&self) -> &ApiMetrics {
        &self.admission.metrics
    }

    pub(crate) fn is_regular(&self) -> bool {
        let table = self.admission.lock();
        table.entries.get(&self.number).is_some_and(|entry| entry.tier == Tier::Regular)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut table = self.admission.lock();
        let tier = table.remove(self.number);
        self.admission.metrics.set_connections(table.open());
        drop(table);
        if tier == Some(Tier::Regular) {
            self.admission.room.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(permit: &ConnectionPermit) -> Command {
        permit.poll_command(&Context::from_waker(Waker::noop()))
    }

    fn tier(permit: &ConnectionPermit) -> Tier {
        permit.admission.lock().entries[&permit.number].tier
    }

    fn admission(max: usize) -> Arc<Admission> {
        Admission::new(max, ApiMetrics::default())
    }

    #[tokio::test]
    async fn the_connection_that_is_idle_the_longest_gives_way() {
        let admission = admission(3);
        let permits: Vec<_> = (0..3).map(|_| admission.admit(Instant::now())).collect();
        for busy in &permits {
            busy.begin_request();
        }
        permits[1].set(Activity::Idle);
        permits[0].set(Activity::Idle);
        let fourth = admission.admit(Instant::now());
        assert_eq!(
            permits.iter().map(command).collect::<Vec<_>>(),
            [Command::Stay, Command::Leave, Command::Stay]
        );
        assert_eq!((tier(&fourth), tier(&permits[1])), (Tier::Regular, Tier::Leaving));
    }

    #[tokio::test]
    async fn a_silent_connection_gives_way_after_a_while() {
        let admission = admission(1);
        let now = Instant::now();
        let silent = admission.admit(now);
        assert_eq!(tier(&admission.admit(now)), Tier::Reserved);
        assert_eq!(command(&silent), Command::Stay);
        assert_eq!(tier(&admission.admit(now + SILENT_GRACE)), Tier::Regular);
        assert_eq!(command(&silent), Command::Leave);
    }

    #[tokio::test]
    async fn a_request_that_arrives_meanwhile_is_served_from_the_reserve() {
        let admission = admission(1);
        let first = admission.admit(Instant::now());
        first.set(Activity::Idle);
        let second = admission.admit(Instant::now());
        assert_eq!(command(&first), Command::Leave);
        assert_eq!(first.begin_request(), Tier::Reserved);
        assert_eq!(command(&first), Command::Stay);
        second.begin_request();
        assert!(!first.wait_for_place().await);
        second.set(Activity::Idle);
        assert!(first.wait_for_place().await);
    }

    #[tokio::test]
    async fn whatever_comes_the_number_of_connections_is_bounded() {
        let admission = admission(2);
        let mut permits = Vec::new();
        for number in 0..1000 {
            let permit = admission.admit(Instant::now());
            if number % 3 == 0 {
                permit.begin_request();
            }
            permits.push(permit);
            // A task that is told to end at once does.
            permits.retain(|permit| command(permit) != Command::Kill);
            assert!(permits.len() <= 2 + 2 * RESERVED_CONNECTIONS + 1, "{}", permits.len());
        }
        let counts = admission.lock().counts;
        assert!(counts[..3].iter().sum::<usize>() <= 2 + 2 * RESERVED_CONNECTIONS, "{counts:?}");
        drop(permits);
        assert_eq!(admission.lock().counts, [0; 4]);
        assert!(admission.lock().order.is_empty());
    }

    #[tokio::test]
    async fn a_place_that_is_given_back_goes_to_whoever_waits() {
        let admission = admission(1);
        let first = admission.admit(Instant::now());
        first.begin_request();
        let second = admission.admit(Instant::now());
        assert_eq!(second.begin_request(), Tier::Reserved);
        let waits = second.wait_for_place();
        tokio::pin!(waits);
        tokio::select! {
            biased;
            _ = &mut waits => panic!("there is no place"),
            () = tokio::task::yield_now() => {}
        }
        drop(first);
        assert!(waits.await);
        assert!(second.is_regular());
    }
}
