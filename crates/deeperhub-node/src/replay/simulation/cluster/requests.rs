//! Requests of nodes to the store, and their answers.

use std::time::Instant;

use deeperhub_cluster::simulation::{StoreRequest, stamp_reset};
use deeperhub_cluster::{StorePosition, StreamRange, StreamRead, StreamTop};
use deeperhub_protocol::Topic;

use super::Simulation;
use super::broker::index;
use super::jetstream::limits_of;
use super::store::Store;

impl Simulation {
    /// Takes a node's requests to the store, and answers some.
    pub(super) fn answer(&mut self, node: usize, count: usize) -> Result<bool, String> {
        let now = self.times.now;
        if let Some(running) = self.nodes[node].as_ref().filter(|_| self.links[node].is_up) {
            let taken = running.driver.take_requests(Instant::now());
            self.links[node].requests.extend(taken.into_iter().map(|request| (request, now)));
        }
        if self.is_paused() {
            return Ok(false);
        }
        if matches!(self.store, Store::JetStream(_)) && self.links[node].is_up {
            self.prepare_streams(node)?;
        }
        let mut is_busy = false;
        for _ in 0..count {
            let Some((request, _)) = self.links[node].requests.pop_front() else { break };
            is_busy = true;
            self.answer_one(node, request)?;
        }
        Ok(is_busy)
    }

    fn answer_one(&mut self, node: usize, request: StoreRequest) -> Result<(), String> {
        match request {
            StoreRequest::Streams { reads, reply } => {
                let mut ranges = Vec::new();
                for read in &reads {
                    ranges.push(Ok(self.read(node, read)?));
                }
                let _ = reply.send(Ok(ranges));
            }
            StoreRequest::Tops { topics, remember_ms, reply } => {
                let mut tops = Vec::new();
                for topic in &topics {
                    tops.push(self.top(node, topic, remember_ms)?);
                }
                let _ = reply.send(Ok(tops));
            }
            StoreRequest::Reset { reset, mut envelope, stamp, reply } => {
                let now = self.broker_ms();
                self.keep_replica();
                let position = match &mut self.store {
                    Store::Redis(server) => {
                        let (position, has_begun) = server.reset(&reset, now, &mut self.given);
                        self.note_epoch(reset.topic.as_str(), Some(position));
                        if has_begun {
                            stamp_reset(&mut envelope, stamp, position.epoch, now);
                            self.push(reset.topic.as_str(), &envelope.into());
                        }
                        position
                    }
                    Store::JetStream(_) => self.at_jetstream(node, |session| session.reset(&reset))?,
                };
                let _ = reply.send(Ok(position));
            }
        }
        Ok(())
    }

    fn read(&mut self, node: usize, read: &StreamRead) -> Result<StreamRange, String> {
        let (now, max) = (self.broker_ms(), self.settings.max_read);
        match &mut self.store {
            Store::Redis(server) => {
                let range = server.read(read, max, now, &mut self.given);
                self.note_epoch(read.topic.as_str(), range.top);
                Ok(range)
            }
            Store::JetStream(_) => self.at_jetstream(node, |session| session.read(read, max)),
        }
    }

    fn top(&mut self, node: usize, topic: &Topic<'_>, remember_ms: Option<u64>) -> Result<StreamTop, String> {
        let now = self.broker_ms();
        if let Store::Redis(server) = &mut self.store {
            return Ok(server.top(topic.as_str(), remember_ms, now));
        }
        match self.nodes[node].as_ref().and_then(|node| node.limits_of(topic)) {
            Some(limits) => self.at_jetstream(node, |session| session.top(topic.as_str(), limits_of(limits))),
            None => Ok(StreamTop { position: None, progress: None, time: now }),
        }
    }

    fn note_epoch(&mut self, topic: &str, top: Option<StorePosition>) {
        if let (Some(topic), Some(top)) = (index(topic), top) {
            self.logs[topic].add_epoch(top.epoch);
        }
    }
}
