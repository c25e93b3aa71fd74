//! Probes that a node sends to itself.

use std::time::Instant;

use deeperhub_cluster::Broker;
use deeperhub_protocol::RawJson;

use super::Hub;
use crate::canary::{ProbePublisher, probe_topic};

impl ProbePublisher for Hub {
    fn publish_probe(&self, worker: usize, number: u64) -> u64 {
        let text = number.to_string();
        match RawJson::parse(&text) {
            Ok(message) => self
                .publish(&probe_topic(worker), message, None, Instant::now(), None)
                .map_or(0, |outcome| outcome.subscribers),
            Err(_) => 0,
        }
    }

    fn broker(&self) -> Option<&Broker> {
        self.broker.as_ref()
    }

    fn uses_store(&self) -> bool {
        self.streams.cluster.is_some() && self.limits.load().history.rules.keep_history()
    }

    fn publish_store_probe(&self, number: u64) -> bool {
        self.streams.cluster.as_ref().is_some_and(|store| store.queue_probe(number))
    }
}
