//! The streams of JetStream, as nodes use them.

use std::sync::Arc;

use deeperhub_cluster::StorePosition;

use super::super::topics::TOPICS;
use super::appends::number;
use super::jetstream::{Record, Session, limits_of};
use super::link::Incoming;
use super::store::Store;
use super::{Simulation, broker, operation};

impl Simulation {
    /// Lets a node use JetStream, which sends messages meanwhile.
    pub(super) fn at_jetstream<R>(
        &mut self,
        node: usize,
        act: impl FnOnce(&mut Session<'_>) -> R,
    ) -> Result<R, String> {
        let now = self.broker_ms();
        let node_ms = self.node_ms(node);
        let (mut sent, begun) = (Vec::new(), self.given.begun());
        let Store::JetStream(server) = &mut self.store else { return Err("the store is Redis".to_owned()) };
        let (known, given) = (&mut self.links[node].known, &mut self.given);
        let result = act(&mut Session { server, known, given, now, node_ms, sent: &mut sent });
        let is_changed = !sent.is_empty() || self.given.begun() > begun;
        for record in sent {
            self.on_record(node, record)?;
        }
        if is_changed {
            self.note_epochs();
        }
        Ok(result)
    }

    /// Notes a new message of JetStream by a node, and sends it to the nodes that follow its topic.
    fn on_record(&mut self, sender: usize, record: Arc<Record>) -> Result<(), String> {
        let is_mark = match record.payload() {
            Some(payload) => {
                let now = self.broker_ms();
                let (epochs, _) = self.store.positions(&record.topic, now);
                let number = number(&payload)?;
                for epoch in epochs {
                    let position = StorePosition { epoch, offset: record.sequence };
                    self.on_stored(&record.topic, position, number)?;
                }
                false
            }
            None => true,
        };
        for (node, link) in self.links.iter_mut().enumerate() {
            // A node knows its own mark already.
            if node != sender || !is_mark {
                link.known.note_given(&record);
            }
        }
        for link in self.links.iter_mut().filter(|link| link.is_up) {
            // All nodes are told of a new epoch.
            if is_mark || link.follows(&record.topic) {
                link.incoming.push_back(Incoming::Record(Arc::clone(&record)));
            }
        }
        Ok(())
    }

    /// Compares all streams of JetStream with what a node knows, once for each connection.
    pub(super) fn prepare_streams(&mut self, node: usize) -> Result<(), String> {
        if std::mem::replace(&mut self.links[node].is_prepared, true) {
            return Ok(());
        }
        for topic in operation::TOPICS {
            let limits =
                self.nodes[node].as_ref().and_then(|running| running.limits_of(&broker::topic(topic)));
            if let Some(limits) = limits {
                self.at_jetstream(node, |session| session.ensure(TOPICS[topic], limits_of(limits)))?;
            }
        }
        Ok(())
    }

    /// Checks that no stream of JetStream lives on that has lost messages which a node had seen.
    pub(super) fn check_streams(&self) -> Result<(), String> {
        let Store::JetStream(server) = &self.store else { return Ok(()) };
        self.links.iter().enumerate().try_for_each(|(node, link)| {
            link.known.check_replaced(server).map_err(|text| format!("n{node}: {text}"))
        })
    }

    /// Notes the epochs of all streams of JetStream.
    fn note_epochs(&mut self) {
        let now = self.broker_ms();
        for (topic, log) in self.logs.iter_mut().enumerate() {
            let (epochs, top) = self.store.positions(TOPICS[topic], now);
            epochs.into_iter().filter(|epoch| *epoch > 0).for_each(|epoch| log.note_top(epoch, top));
        }
    }
}
