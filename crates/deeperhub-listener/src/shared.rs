//! What a worker shares with the other threads of its listener.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use deeperhub_protocol::frame::FrameLimits;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::waker::ReadyList;

/// A worker's view of what it shares with the other threads of its listener.
pub(crate) struct ListenerShared {
    config_cache: Cache<Arc<ArcSwap<Config>>, Arc<Config>>,
    /// The configuration as of the start of this round.
    pub(crate) config: Arc<Config>,
    /// The limits of messages in `config`.
    pub(crate) limits: FrameLimits,
    pub(crate) metrics: Metrics,
    /// Connections whose sockets became ready since the last round.
    pub(crate) ready: Arc<ReadyList>,
}

impl ListenerShared {
    pub(crate) fn new(shared_config: Arc<ArcSwap<Config>>, metrics: Metrics) -> Self {
        let mut config_cache = Cache::new(shared_config);
        let config = Arc::clone(config_cache.load());
        Self { limits: frame_limits(&config), config_cache, config, metrics, ready: Arc::default() }
    }

    /// Loads the current configuration. Called at the start of a round.
    pub(crate) fn load_config(&mut self) {
        let config = self.config_cache.load();
        if !Arc::ptr_eq(config, &self.config) {
            self.config = Arc::clone(config);
            self.limits = frame_limits(&self.config);
        }
    }
}

fn frame_limits(config: &Config) -> FrameLimits {
    let mut limits = FrameLimits::default();
    limits.max_message_bytes = config.max_message_bytes;
    limits.max_fragments = config.max_fragments;
    limits
}
