//! Limits on open connections, and the choice of connections to evict.
//!
//! One setting limits both regular connections and concurrent requests. Over the limit, the
//! connection that has been idle the longest is evicted. If none has been idle for long, up to
//! [`RESERVED_CONNECTIONS`] more are accepted for one request each. Health checks are answered at
//! once. Other requests wait until fewer than the limit are being served, and get 503 after a
//! second. When the reserve is full, new connections wait to be accepted until the grace time of a
//! reserved one is over. So every caller gets a response, and memory and file descriptors stay
//! bounded.

mod permit;
mod signal;
mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::signal::Signal;
use self::table::{EvictionScope, Table, Tier};
use crate::metrics::ApiMetrics;

pub(crate) use self::permit::ConnectionPermit;
pub(crate) use self::signal::Command;
pub(crate) use self::table::Activity;

/// Number of connections beyond [`max_connections`](crate::ApiConfig::max_connections) that may be
/// open to serve or refuse one request each. As many again may be closing.
pub const RESERVED_CONNECTIONS: usize = 256;

/// Minimum idle time before a connection is evicted. Its client may be about to reuse it, and would
/// lose a request that it may not be able to retry. The time is long because a busy client notices
/// late that the server has closed a connection.
const IDLE_GRACE: Duration = Duration::from_secs(5);

/// Minimum time without a whole request before a connection is evicted for another's request.
const AWAITING_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// Interval between two checks for a connection that can be evicted.
const ADMISSION_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Registry of a server's connections.
#[derive(Debug)]
pub(crate) struct Admission {
    max_connections: usize,
    metrics: ApiMetrics,
    table: Mutex<Table>,
    /// Wakes a waiting request when another request or a connection has ended.
    slot_freed: Notify,
}

impl Admission {
    pub(crate) fn new(max_connections: usize, metrics: ApiMetrics) -> Arc<Self> {
        let table = Mutex::default();
        Arc::new(Self { max_connections: max_connections.max(1), metrics, table, slot_freed: Notify::new() })
    }

    /// Waits until another connection can be admitted. If the reserve is full, the grace time of
    /// one of its connections must be over. There must also be room for that connection among the
    /// closing ones.
    pub(crate) async fn ready(&self) {
        while !self.can_admit(Instant::now()) {
            tokio::time::sleep(ADMISSION_POLL_INTERVAL).await;
        }
    }

    fn can_admit(&self, now: Instant) -> bool {
        let table = self.lock();
        table.counts[Tier::Regular as usize] < self.max_connections
            || table.oldest_in_state(Tier::Regular, Activity::Idle, IDLE_GRACE, now).is_some()
            || table.counts[Tier::Reserved as usize] < RESERVED_CONNECTIONS
            || (table.eviction_candidate(Tier::Reserved, EvictionScope::PastGrace, now).is_some()
                && (table.counts[Tier::Closing as usize] < RESERVED_CONNECTIONS
                    || table.eviction_candidate(Tier::Closing, EvictionScope::PastGrace, now).is_some()))
    }

    /// Admits an accepted connection, and evicts others if necessary.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> ConnectionPermit {
        let signal = Arc::<Signal>::default();
        let mut table = self.lock();
        // The connection has no request yet, so it does not evict another that has none.
        let tier = if self.make_room(&mut table, false, now) { Tier::Regular } else { Tier::Reserved };
        let number = table.insert(tier, now, Arc::clone(&signal));
        self.evict_over_reserve(&mut table, now);
        self.metrics.set_connections(table.len());
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

    /// Returns `true` if there is room for a regular connection. If necessary, evicts another one:
    /// an idle one or, for a request, one that still awaits its first request.
    fn make_room(&self, table: &mut Table, for_request: bool, now: Instant) -> bool {
        if table.counts[Tier::Regular as usize] < self.max_connections {
            return true;
        }
        let idle = table.oldest_in_state(Tier::Regular, Activity::Idle, IDLE_GRACE, now);
        let awaiting = || {
            table
                .oldest_in_state(Tier::Regular, Activity::AwaitingRequest, AWAITING_REQUEST_GRACE, now)
                .filter(|_| for_request)
        };
        let Some(victim) = idle.or_else(awaiting) else { return false };
        self.metrics.connection_evicted();
        table.send_command(victim, Tier::Closing, Command::CloseIfIdle);
        true
    }

    /// Closes connections beyond the reserve.
    fn evict_over_reserve(&self, table: &mut Table, now: Instant) {
        while table.counts[Tier::Reserved as usize] > RESERVED_CONNECTIONS
            && let Some((activity, victim)) = table
                .eviction_candidate(Tier::Reserved, EvictionScope::PastGrace, now)
                .or_else(|| table.eviction_candidate(Tier::Reserved, EvictionScope::Any, now))
        {
            let command = if activity == Activity::Busy { Command::Kill } else { Command::CloseIfIdle };
            table.send_command(victim, Tier::Closing, command);
        }
        while table.counts[Tier::Closing as usize] > RESERVED_CONNECTIONS
            && let Some((_, victim)) = table.eviction_candidate(Tier::Closing, EvictionScope::Any, now)
        {
            table.send_command(victim, Tier::Killed, Command::Kill);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change to the table is complete before anything can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

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
    async fn the_longest_idle_connection_is_evicted() {
        let admission = admission(3);
        let permits: Vec<_> = (0..3).map(|_| admission.admit(Instant::now())).collect();
        for busy in &permits {
            assert!(busy.begin_request(false));
        }
        permits[1].set(Activity::Idle);
        permits[0].set(Activity::Idle);
        assert_eq!(
            tier(&admission.admit(Instant::now())),
            Tier::Reserved,
            "idle connections have a grace time"
        );
        let fourth = admission.admit(Instant::now() + IDLE_GRACE);
        let commands: Vec<_> = permits.iter().map(command).collect();
        assert_eq!(commands, [Command::Continue, Command::CloseIfIdle, Command::Continue]);
        assert_eq!((tier(&fourth), tier(&permits[1])), (Tier::Regular, Tier::Closing));
    }

    #[tokio::test]
    async fn a_connection_without_a_request_is_evicted_for_a_request() {
        let admission = admission(1);
        let now = Instant::now();
        let first = admission.admit(now);
        let another = admission.admit(now + AWAITING_REQUEST_GRACE);
        assert_eq!(
            (tier(&another), command(&first)),
            (Tier::Reserved, Command::Continue),
            "it has no request either"
        );
        tokio::time::sleep(AWAITING_REQUEST_GRACE).await;
        assert!(another.begin_request(false));
        assert_eq!((tier(&another), command(&first)), (Tier::Regular, Command::CloseIfIdle));
    }

    #[tokio::test]
    async fn reserved_connections_are_served_one_request_each() {
        let admission = admission(1);
        let regular = admission.admit(Instant::now());
        assert!(regular.begin_request(false));
        regular.set(Activity::Idle);
        let permits: Vec<_> = (0..3).map(|_| admission.admit(Instant::now())).collect();
        assert!(permits[0].begin_request(false));
        assert!(!permits[0].is_regular(), "the idle connection has a grace time");
        assert!(!permits[1].begin_request(false), "the limit on running requests is reached");
        assert!(permits[2].begin_request(true), "a health check");
        regular.begin_request(false);
        assert!(!permits[1].wait_for_turn().await);
    }

    #[tokio::test]
    async fn a_request_on_a_closing_connection_is_served_from_the_reserve() {
        let admission = admission(1);
        let first = admission.admit(Instant::now());
        first.set(Activity::Idle);
        let second = admission.admit(Instant::now() + IDLE_GRACE);
        assert!(second.begin_request(false));
        assert_eq!(command(&first), Command::CloseIfIdle);
        assert!(!first.begin_request(false));
        assert_eq!((tier(&first), command(&first)), (Tier::Reserved, Command::Continue));
        let waits = first.wait_for_turn();
        tokio::pin!(waits);
        tokio::select! {
            biased;
            _ = &mut waits => panic!("the other request still runs"),
            () = tokio::task::yield_now() => {}
        }
        drop(second);
        assert!(waits.await);
    }

    #[tokio::test]
    async fn the_number_of_connections_is_bounded() {
        let admission = admission(2);
        let mut permits = Vec::new();
        for number in 0..1000 {
            let permit = admission.admit(Instant::now());
            if number % 3 == 0 {
                permit.begin_request(number % 2 == 0);
            }
            permits.push(permit);
            // Tasks end as soon as they are told to.
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
