//! Table of theoretical arrival times per client address.
//!
//! The theoretical arrival time is the state of the generic cell rate algorithm: the time at which
//! an event would arrive if events came exactly at the rate of the limit.

use crate::client_network;
use ahash::RandomState;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of entries of an [`AddressLimiter`](super::AddressLimiter) or a
/// [`BurstPool`](super::BurstPool). Limits the memory of each to about 3 MiB.
pub const MAX_ADDRESSES: usize = 65_536;

/// Number of shards: parts of the table with a lock each, so that threads can use them in parallel.
const SHARDS: usize = 64;

/// Theoretical arrival time of the next event for each address (see
/// [`RateLimiter`](super::RateLimiter)), in nanoseconds of the caller's time. An entry whose time
/// has passed is expired: its burst is full, like the burst of an address without an entry.
pub(super) struct ArrivalTable {
    shards: Box<[Mutex<HashMap<IpAddr, u64, RandomState>>]>,
    hasher: RandomState,
    /// Time between two sweeps, which remove expired entries, in nanoseconds.
    sweep_interval: u64,
    next_sweep: AtomicU64,
    evicted: AtomicU64,
}

impl ArrivalTable {
    /// Minimum time between two sweeps, in nanoseconds.
    const MIN_SWEEP_INTERVAL: u64 = 1_000_000_000;

    /// Maximum time between two sweeps, in nanoseconds.
    const MAX_SWEEP_INTERVAL: u64 = 60_000_000_000;

    /// Creates an empty table for bursts that refill within `burst_nanos`.
    pub(super) fn new(burst_nanos: u64) -> Self {
        let sweep_interval = burst_nanos.clamp(Self::MIN_SWEEP_INTERVAL, Self::MAX_SWEEP_INTERVAL);
        let hasher = RandomState::new();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect(),
            hasher,
            sweep_interval,
            next_sweep: AtomicU64::new(sweep_interval),
            evicted: AtomicU64::new(0),
        }
    }

    /// Calls `decide` with the arrival time of `address`, or 0 if there is none. `decide` returns
    /// the new arrival time and a result, which is returned.
    pub(super) fn update<R>(&self, address: IpAddr, now: u64, decide: impl FnOnce(u64) -> (u64, R)) -> R {
        self.sweep(now);
        let address = client_network(address);
        let mut shard = lock(&self.shards[self.hasher.hash_one(address) as usize % SHARDS]);
        let (arrival, result) = decide(shard.get(&address).copied().unwrap_or(0));
        if arrival > now {
            if shard.len() >= MAX_ADDRESSES / SHARDS && !shard.contains_key(&address) {
                self.make_room(&mut shard, now);
            }
            shard.insert(address, arrival);
        }
        result
    }

    /// Removes expired entries of a full shard. If there are none, evicts the entry with the
    /// earliest arrival time, which has most of its burst left.
    fn make_room(&self, shard: &mut HashMap<IpAddr, u64, RandomState>, now: u64) {
        shard.retain(|_, arrival| *arrival > now);
        if shard.len() < MAX_ADDRESSES / SHARDS {
            return;
        }
        if let Some((&earliest, _)) = shard.iter().min_by_key(|(_, arrival)| **arrival) {
            shard.remove(&earliest);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes expired entries of all shards if a sweep is due.
    fn sweep(&self, now: u64) {
        let due = self.next_sweep.load(Ordering::Relaxed);
        let next = now.saturating_add(self.sweep_interval);
        // If several threads find that a sweep is due, the exchange succeeds for one of them only.
        let claim =
            || self.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if now >= due && claim() {
            for shard in &self.shards {
                let mut shard = lock(shard);
                shard.retain(|_, arrival| *arrival > now);
                if shard.capacity() / 4 > shard.len() {
                    shard.shrink_to_fit();
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    pub(super) fn take_evicted(&self) -> u64 {
        // The count is mostly 0. Unlike a swap, a load does not take the cache line from other
        // cores.
        if self.evicted.load(Ordering::Relaxed) == 0 { 0 } else { self.evicted.swap(0, Ordering::Relaxed) }
    }
}

impl fmt::Debug for ArrivalTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ArrivalTable").field("addresses", &self.len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
