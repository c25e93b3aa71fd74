//! The broker and its faults.

use deeperhub_protocol::Topic;

use super::super::topics::TOPICS;
use super::Simulation;
use super::store::Store;

/// Replicas that lag, each by some more changes.
const MAX_REPLICAS: usize = 8;

impl Simulation {
    /// Returns the broker's time.
    pub(super) fn broker_ms(&self) -> u64 {
        let ms = self.times.started_unix_ms + self.times.now.as_millis() as u64;
        ms.saturating_add_signed(self.broker_skew_ms)
    }

    /// Returns a node's time.
    pub(super) fn node_ms(&self, node: usize) -> u64 {
        let ms = self.times.started_unix_ms + self.times.now.as_millis() as u64;
        ms.saturating_add_signed(self.settings.skews_ms[node])
    }

    pub(super) fn is_paused(&self) -> bool {
        self.times.now < self.paused_until
    }

    pub(super) fn keep_replica(&mut self) {
        self.replicas.push_front(self.store.clone());
        self.replicas.truncate(MAX_REPLICAS);
    }

    /// Crashes the broker, or promotes a replica. It comes back as it was some changes ago, with
    /// another clock.
    pub(super) fn fail_over(&mut self, lag: usize, skew_ms: i64) {
        if let Some(store) = self.replicas.get(lag).cloned() {
            self.store = store;
            self.on_lost();
        }
        self.store.start_again();
        self.broker_skew_ms += skew_ms;
        self.replicas.clear();
        for node in 0..self.links.len() {
            self.cut_link(node, 0);
            self.links[node].late.clear();
        }
    }

    /// Loses everything.
    pub(super) fn wipe(&mut self) {
        self.store = super::store::Store::new(self.settings.is_sparse);
        self.on_lost();
        self.fail_over(usize::MAX, 0);
    }

    /// Loses what belongs to a topic.
    pub(super) fn evict(&mut self, topic: usize, what: u8) {
        // Operators must not do so to streams of JetStream.
        if let Store::Redis(server) = &mut self.store {
            server.evict(TOPICS[topic], what);
        }
    }

    /// Notes what the store has lost.
    fn on_lost(&mut self) {
        let now = self.broker_ms();
        for (topic, log) in self.logs.iter_mut().enumerate() {
            let (epochs, top) = self.store.positions(TOPICS[topic], now);
            log.lose(&epochs, top);
        }
    }

    /// Does all that the links and the broker can do. Returns `false` if there was nothing.
    pub(super) fn pump(&mut self, node: usize) -> Result<bool, String> {
        let mut is_busy = false;
        self.follow(node);
        self.send(node);
        is_busy |= self.execute(node, usize::MAX)?;
        is_busy |= self.confirm(node)?;
        is_busy |= self.answer(node, usize::MAX)?;
        is_busy |= self.pass(node, usize::MAX)?;
        if let Some(running) = &mut self.nodes[node] {
            running.run();
        }
        Ok(is_busy)
    }
}

/// Returns the number of a topic.
pub(super) fn index(name: &str) -> Option<usize> {
    TOPICS.iter().position(|topic| *topic == name)
}

/// Returns a topic of the simulation.
pub(super) fn topic(index: usize) -> Topic<'static> {
    Topic::parse(TOPICS[index]).expect("a topic")
}
