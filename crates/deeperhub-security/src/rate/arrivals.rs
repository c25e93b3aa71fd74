//! Table of arrival times per client address.

use crate::client_network;
use ahash::RandomState;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of addresses that an [`AddressLimiter`](super::AddressLimiter) or a [`BurstPool`](super::BurstPool) remembers, in about 3
/// MiB.
pub const MAX_ADDRESSES: usize = 65_536;

/// Number of shards of the address table, which threads can use in parallel.
const SHARDS: usize = 64;

/// Theoretical arrival time of the next event for each address (see [`RateLimiter`](super::RateLimiter)), in
/// nanoseconds of the caller's time. A time in the past carries no information, so it need not be
/// kept.
pub(super) struct ArrivalTable {
    shards: Box<[Mutex<HashMap<IpAddr, u64, RandomState>>]>,
    hasher: RandomState,
    /// The time between two sweeps, in nanoseconds.
    sweep_interval: u64,
    next_sweep: AtomicU64,
    evicted: AtomicU64,
}

impl ArrivalTable {
    /// Shortest and longest time between two sweeps of expired addresses, in nanoseconds.
    const SWEEP_INTERVAL: (u64, u64) = (1_000_000_000, 60_000_000_000);

    /// Returns an empty table for bursts that are whole again after `full_after` nanoseconds.
    pub(super) fn new(full_after: u64) -> Self {
        let sweep_interval = full_after.clamp(Self::SWEEP_INTERVAL.0, Self::SWEEP_INTERVAL.1);
        let hasher = RandomState::new();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect(),
            hasher,
            sweep_interval,
            next_sweep: AtomicU64::new(sweep_interval),
            evicted: AtomicU64::new(0),
        }
    }

    /// Replaces the arrival time of `address` with the one that `decide` returns for it.
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

    /// Removes expired addresses. If there are none, evicts the one with the earliest arrival time.
    fn make_room(&self, shard: &mut HashMap<IpAddr, u64, RandomState>, now: u64) {
        shard.retain(|_, arrival| *arrival > now);
        if shard.len() < MAX_ADDRESSES / SHARDS {
            return;
        }
        if let Some((&first, _)) = shard.iter().min_by_key(|(_, arrival)| **arrival) {
            shard.remove(&first);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sweep(&self, now: u64) {
        let due = self.next_sweep.load(Ordering::Relaxed);
        let next = now.saturating_add(self.sweep_interval);
        // Only one of the threads that find the sweep due performs it.
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
        // The count is mostly 0, and a load does not take the cache line from other cores.
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
