//! State that a worker shares with the other threads of its listener.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use deeperhub_protocol::frame::FrameLimits;

use crate::config::{Config, Limits};
use crate::metrics::Metrics;
use crate::waker::ReadyList;

/// A worker's view of what it shares with the other threads of its listener.
pub(crate) struct ListenerShared {
    /// Settings that are fixed at the start. The current limits are in `limits`.
    pub(crate) config: Arc<Config>,
    limits_cache: Cache<Arc<ArcSwap<Limits>>, Arc<Limits>>,
    /// The limits as of the start of this round.
    pub(crate) limits: Arc<Limits>,
    /// The part of `limits` that concerns frames.
    pub(crate) frame_limits: FrameLimits,
    pub(crate) metrics: Metrics,
    /// Connections whose sockets became ready since the last round.
    pub(crate) ready: Arc<ReadyList>,
}

impl ListenerShared {
    pub(crate) fn new(config: Arc<Config>, shared_limits: Arc<ArcSwap<Limits>>, metrics: Metrics) -> Self {
        let mut limits_cache = Cache::new(shared_limits);
        let limits = Arc::clone(limits_cache.load());
        Self { frame_limits: limits.frames(), config, limits_cache, limits, metrics, ready: Arc::default() }
    }

    /// Loads the current limits. Called at the start of a round.
    pub(crate) fn load_limits(&mut self) {
        let limits = self.limits_cache.load();
        if !Arc::ptr_eq(limits, &self.limits) {
            self.limits = Arc::clone(limits);
            self.frame_limits = limits.frames();
        }
    }
}
