//! Limits on open connections, and the choice of connections to evict.
//!
//! One setting limits both regular connections and concurrent requests. Over the limit, the
//! connection that has been idle the longest is evicted. If none has been idle for long, a few
//! reserved connections take one request each. Health checks are answered at once. Other requests
//! wait until fewer than the limit are being served, and get 503 after a second. When the reserve
//! is full, new connections wait to be accepted until the grace time of a reserved one is over. So
//! every caller gets an answer, and memory and file descriptors stay bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::ApiMetrics;

/// Number of connections beyond [`max_connections`](crate::ApiConfig::max_connections) that may be
/// open to serve or refuse one request each. As many again may be closing.
pub const RESERVED_CONNECTIONS: usize = 256;

/// Minimum idle time before a connection is evicted. Its client may be about to reuse it, and would
/// lose a request that it may not be able to retry. A busy client notices late that a connection
/// has ended.
const IDLE_GRACE: Duration = Duration::from_secs(5);

/// Minimum time without a whole request before a connection is evicted for another's request.
const SILENT_GRACE: Duration = Duration::from_secs(1);

/// Grace times of reserved and closing connections while the reserve is full and others wait to be
/// accepted: to send a request, to wait for others' requests, and to read an answer while input is
/// discarded. If the kernel's backlog fills up, it drops new connections, health checks among them.
const RESERVED_GRACE: Duration = Duration::from_millis(500);
const WAITING_GRACE: Duration = Duration::from_millis(50);
const DISCARDING_GRACE: Duration = Duration::from_millis(100);

/// Time that a request waits for others to finish before it gets 503.
const PLACE_WAIT: Duration = Duration::from_secs(1);

/// Interval between two checks for a connection that can be evicted.
const POLL: Duration = Duration::from_millis(10);

/// Class of a connection, which decides what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Any number of requests.
    Regular,
    /// One request, if fewer than the limit are being served; a health check in any case.
    Reserved,
    /// The connection was asked to end. A request that still arrives makes it reserved again.
    Leaving,
    /// The connection was told to end at once and no longer counts.
    Gone,
}

/// Current activity of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Activity {
    /// Between two requests.
    Idle,
    /// Discarding input after the last answer.
    Discarding,
    /// Without a whole request so far.
    Silent,
    /// With a request that waits for others to finish.
    Waiting,
    /// With a request that is being served.
    Busy,
}

/// Command to a connection's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Command {
    /// Carry on.
    Stay,
    /// End after the current request, since the server stops.
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

/// Channel for commands to a connection's task.
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

/// Set of connections that may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// Connections whose grace time is over.
    HadItsTime,
    /// All connections, since the limit comes first.
    Any,
}

/// Registry of a server's connections.
#[derive(Debug)]
pub(crate) struct Admission {
    max_connections: usize,
    metrics: ApiMetrics,
    table: Mutex<Table>,
    /// Wakes a waiting request when another request or a connection has ended.
    room: Notify,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    /// Connections by tier and activity, the longest in that state first.
    order: BTreeMap<(Tier, Activity, u64), u64>,
    counts: [usize; 4],
    /// Number of requests being served.
    busy: usize,
    /// Source of both connection numbers and state stamps.
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

    /// Waits until another connection can be admitted. If the reserve is full, the grace time of
    /// one of its connections must be over, and there must be room for it among the closing ones.
    pub(crate) async fn ready(&self) {
        while !self.can_admit(Instant::now()) {
            tokio::time::sleep(POLL).await;
        }
    }

    fn can_admit(&self, now: Instant) -> bool {
        let table = self.lock();
        table.counts[Tier::Regular as usize] < self.max_connections
            || table.aged(Tier::Regular, Activity::Idle, IDLE_GRACE, now).is_some()
            || table.counts[Tier::Reserved as usize] < RESERVED_CONNECTIONS
            || (table.victim(Tier::Reserved, Victim::HadItsTime, now).is_some()
                && (table.counts[Tier::Leaving as usize] < RESERVED_CONNECTIONS
                    || table.victim(Tier::Leaving, Victim::HadItsTime, now).is_some()))
    }

    /// Admits an accepted connection, and evicts others if necessary.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> ConnectionPermit {
        let signal = Arc::<Signal>::default();
        let mut table = self.lock();
        // The connection has no request yet, so it does not evict another that has none.
        let tier = if self.has_room(&mut table, false, now) { Tier::Regular } else { Tier::Reserved };
        let number = table.insert(tier, now, Arc::clone(&signal));
        self.trim(&mut table, now);
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

    /// Asks all connections to end after their current request.
    pub(crate) fn drain(&self) {
        self.lock().entries.values().for_each(|entry| entry.signal.send(Command::Drain));
    }

    /// Returns `true` if there is room for a regular connection. If necessary, asks another one to
    /// leave: an idle one or, for a request, a silent one.
    fn has_room(&self, table: &mut Table, for_request: bool, now: Instant) -> bool {
        if table.counts[Tier::Regular as usize] < self.max_connections {
            return true;
        }
        let idle = table.aged(Tier::Regular, Activity::Idle, IDLE_GRACE, now);
        let silent =
            || table.aged(Tier::Regular, Activity::Silent, SILENT_GRACE, now).filter(|_| for_request);
        let Some(victim) = idle.or_else(silent) else { return false };
        self.metrics.connection_evicted();
        table.command(victim, Tier::Leaving, Command::Leave);
        true
    }

    /// Closes connections beyond the reserve.
    fn trim(&self, table: &mut Table, now: Instant) {
        while table.counts[Tier::Reserved as usize] > RESERVED_CONNECTIONS
            && let Some((activity, victim)) = table
                .victim(Tier::Reserved, Victim::HadItsTime, now)
                .or_else(|| table.victim(Tier::Reserved, Victim::Any, now))
        {
            let command = if activity == Activity::Busy { Command::Kill } else { Command::Leave };
            table.command(victim, Tier::Leaving, command);
        }
        while table.counts[Tier::Leaving as usize] > RESERVED_CONNECTIONS
            && let Some((_, victim)) = table.victim(Tier::Leaving, Victim::Any, now)
        {
            table.command(victim, Tier::Gone, Command::Kill);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change to the table is complete before anything can panic.
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

    fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        self.busy -= usize::from(entry.activity == Activity::Busy);
        self.order.remove(&(entry.tier, entry.activity, entry.stamp));
        self.counts[entry.tier as usize] -= 1;
    }

    /// Moves a connection to a tier and an activity. With `now`, its time in that state starts
    /// again.
    fn change(&mut self, number: u64, tier: Tier, activity: Activity, now: Option<Instant>) {
        let stamp = self.number();
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

    fn command(&mut self, number: u64, tier: Tier, command: Command) {
        if let Some(entry) = self.entries.get(&number) {
            entry.signal.send(command);
            self.change(number, tier, entry.activity, None);
        }
    }

    /// Returns the connection that has been in this state the longest, if for at least `age`.
    fn aged(&self, tier: Tier, activity: Activity, age: Duration, now: Instant) -> Option<u64> {
        let range = (tier, activity, 0)..=(tier, activity, u64::MAX);
        let (_, &number) = self.order.range(range).next()?;
        let entry = self.entries.get(&number)?;
        (now.saturating_duration_since(entry.since) >= age).then_some(number)
    }

    /// Returns the next connection to evict. One with a waiting request comes before a silent one,
    /// which may be about to send a health check.
    fn victim(&self, tier: Tier, which: Victim, now: Instant) -> Option<(Activity, u64)> {
        [
            (Activity::Idle, Duration::ZERO),
            (Activity::Discarding, DISCARDING_GRACE),
            (Activity::Waiting, WAITING_GRACE),
            (Activity::Silent, RESERVED_GRACE),
            (Activity::Busy, RESERVED_GRACE),
        ]
        .into_iter()
        .find_map(|(activity, grace)| {
            let age = if which == Victim::Any { Duration::ZERO } else { grace };
            self.aged(tier, activity, age, now).map(|number| (activity, number))
        })
    }

    fn open(&self) -> usize {
        self.entries.len()
    }
}

/// Permit of one open connection. Dropping it frees the connection's place.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    admission: Arc<Admission>,
    number: u64,
    signal: Arc<Signal>,
}

impl ConnectionPermit {
    /// Records what the connection does now.
    pub(crate) fn set(&self, activity: Activity) {
        let mut table = self.admission.lock();
        if let Some(&Entry { tier, .. }) = table.entries.get(&self.number) {
            table.change(self.number, tier, activity, Some(Instant::now()));
        }
        drop(table);
        if matches!(activity, Activity::Idle | Activity::Discarding) {
            self.admission.room.notify_one();
        }
    }

    /// Records that a whole request has arrived. Returns `true` if it may be served now, as it may
    /// in any case if `always` is set.
    pub(crate) fn begin_request(&self, always: bool) -> bool {
        let now = Instant::now();
        let mut table = self.admission.lock();
        let Some(&Entry { tier, .. }) = table.entries.get(&self.number) else { return false };
        if tier == Tier::Regular {
            table.change(self.number, tier, Activity::Busy, Some(now));
            return true;
        }
        // A command to leave no longer applies: the connection is not idle.
        let (leave, stay) = (Command::Leave as u8, Command::Stay as u8);
        let _ = self.signal.command.compare_exchange(leave, stay, Ordering::AcqRel, Ordering::Relaxed);
        table.change(self.number, Tier::Reserved, Activity::Waiting, Some(now));
        let may_go_on = self.go_on(&mut table, now);
        if always && !may_go_on {
            table.change(self.number, Tier::Reserved, Activity::Busy, Some(now));
        }
        self.admission.trim(&mut table, now);
        may_go_on || always
    }

    /// Waits until the request may be served. Returns `false` after [`PLACE_WAIT`], or if the
    /// connection is told to leave.
    pub(crate) async fn wait_for_turn(&self) -> bool {
        let deadline = Instant::now() + PLACE_WAIT;
        let found = loop {
            let served = self.admission.room.notified();
            if self.go_on(&mut self.admission.lock(), Instant::now()) {
                break true;
            }
            tokio::select! {
                () = served => {}
                () = tokio::time::sleep(POLL) => if Instant::now() >= deadline { break false },
                () = std::future::poll_fn(|cx| match self.poll_command(cx) {
                    Command::Leave | Command::Kill => Poll::Ready(()),
                    Command::Stay | Command::Drain => Poll::Pending,
                }) => break false,
            }
        };
        if !found {
            self.set(Activity::Busy);
            self.admission.metrics.connection_refused();
        }
        found
    }

    /// Returns `true` if the waiting request may be served, and marks it as served. The connection
    /// becomes regular if there is room; otherwise this is its only request.
    fn go_on(&self, table: &mut Table, now: Instant) -> bool {
        let may_stay = self.admission.has_room(table, true, now);
        let may_go_on = may_stay || table.busy < self.admission.max_connections;
        if may_go_on {
            let tier = if may_stay { Tier::Regular } else { Tier::Reserved };
            table.change(self.number, tier, Activity::Busy, Some(now));
        }
        may_go_on
    }

    /// Returns the current command. The task is woken when it changes.
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
        table.remove(self.number);
        self.admission.metrics.set_connections(table.open());
        drop(table);
        self.admission.room.notify_one();
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
            assert!(busy.begin_request(false));
        }
        permits[1].set(Activity::Idle);
        permits[0].set(Activity::Idle);
        assert_eq!(tier(&admission.admit(Instant::now())), Tier::Reserved, "they may be used again");
        let fourth = admission.admit(Instant::now() + IDLE_GRACE);
        let commands: Vec<_> = permits.iter().map(command).collect();
        assert_eq!(commands, [Command::Stay, Command::Leave, Command::Stay]);
        assert_eq!((tier(&fourth), tier(&permits[1])), (Tier::Regular, Tier::Leaving));
    }

    #[tokio::test]
    async fn a_silent_connection_gives_way_to_a_request_after_a_while() {
        let admission = admission(1);
        let now = Instant::now();
        let silent = admission.admit(now);
        let another = admission.admit(now + SILENT_GRACE);
        assert_eq!((tier(&another), command(&silent)), (Tier::Reserved, Command::Stay), "it is silent too");
        tokio::time::sleep(SILENT_GRACE).await;
        assert!(another.begin_request(false));
        assert_eq!((tier(&another), command(&silent)), (Tier::Regular, Command::Leave));
    }

    #[tokio::test]
    async fn requests_over_the_limit_are_served_one_each_while_few_are_busy() {
        let admission = admission(1);
        let regular = admission.admit(Instant::now());
        assert!(regular.begin_request(false));
        regular.set(Activity::Idle);
        let permits: Vec<_> = (0..3).map(|_| admission.admit(Instant::now())).collect();
        assert!(permits[0].begin_request(false));
        assert!(!permits[0].is_regular(), "the idle one may be used again");
        assert!(!permits[1].begin_request(false), "as many are busy as may be");
        assert!(permits[2].begin_request(true), "a health check");
        regular.begin_request(false);
        assert!(!permits[1].wait_for_turn().await);
    }

    #[tokio::test]
    async fn a_request_that_arrives_meanwhile_is_served_from_the_reserve() {
        let admission = admission(1);
        let first = admission.admit(Instant::now());
        first.set(Activity::Idle);
        let second = admission.admit(Instant::now() + IDLE_GRACE);
        assert!(second.begin_request(false));
        assert_eq!(command(&first), Command::Leave);
        assert!(!first.begin_request(false));
        assert_eq!((tier(&first), command(&first)), (Tier::Reserved, Command::Stay));
        let waits = first.wait_for_turn();
        tokio::pin!(waits);
        tokio::select! {
            biased;
            _ = &mut waits => panic!("the other is being served"),
            () = tokio::task::yield_now() => {}
        }
        drop(second);
        assert!(waits.await);
    }

    #[tokio::test]
    async fn whatever_comes_the_number_of_connections_is_bounded() {
        let admission = admission(2);
        let mut permits = Vec::new();
        for number in 0..1000 {
            let permit = admission.admit(Instant::now());
            if number % 3 == 0 {
                permit.begin_request(number % 2 == 0);
            }
            permits.push(permit);
            // A task that is told to end at once does so.
            permits.retain(|permit| command(permit) != Command::Kill);
            assert!(permits.len() <= 2 + 2 * RESERVED_CONNECTIONS + 1, "{}", permits.len());
        }
        let counts = admission.lock().counts;
        assert!(counts[..3].iter().sum::<usize>() <= 2 + 2 * RESERVED_CONNECTIONS, "{counts:?}");
        drop(permits);
        let table = admission.lock();
        assert_eq!((table.counts, table.busy, table.order.len()), ([0; 4], 0, 0));
    }
}
