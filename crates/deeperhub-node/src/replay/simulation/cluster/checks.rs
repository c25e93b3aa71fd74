//! Checks after the faults have ended.

use std::collections::BTreeMap;

use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::EncodedDelivery;
use deeperhub_protocol::{Epoch, Topic};
use serde::Deserialize;

use super::super::real_clients::describe;
use super::super::socket::Payload;
use super::super::topics::TOPICS;
use super::node::Node;
use super::{Simulation, log};

impl Simulation {
    /// Checks that all publishes are answered, that all handles are at the newest message, and that
    /// all mirrors have what the store has.
    pub(super) fn check_converged(&mut self, are_published: bool) -> Result<(), String> {
        let now = self.broker_ms();
        let mut tops = BTreeMap::new();
        for (index, name) in TOPICS.iter().enumerate() {
            let (position, _) = self.store.content(name, now);
            tops.insert(index, position.epoch);
            for node in self.nodes.iter().flatten() {
                let log = self.logs[index].epochs.get(&position.epoch);
                check_mirror(node, name, (position.epoch, position.offset), log)
                    .map_err(|text| format!("{} {name}: {text}", node.hub.node_id))?;
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            client.publishes.check_answered()?;
            for view in &client.handles {
                let epoch = tops[&view.topic];
                let (log, own) = (&self.logs[view.topic], &client.publishes.excluded);
                view.application
                    .check_arrived(client.core.position(view.id), log, (epoch, are_published), own)
                    .map_err(|text| describe(index, view.topic, &text))?;
            }
        }
        let workers = self.nodes.iter().flatten().flat_map(|node| &node.workers);
        for worker in workers {
            if !worker.parked.is_empty() || !worker.appends.is_empty() {
                return Err(format!("something waits: {:?} {:?}", worker.parked, worker.appends));
            }
        }
        Ok(())
    }
}

/// The members of a kept message that the simulation reads.
#[derive(Deserialize)]
struct Data {
    message: Payload,
}

fn number_of(frame: &KeptFrame) -> Option<u64> {
    let data: Data = serde_json::from_str(EncodedDelivery::parse(frame.as_bytes())?.data().as_str()).ok()?;
    Some(data.message.n)
}

/// Returns the latest position of a topic that a node knows.
pub(super) fn node_newest(node: &Node, name: &str) -> Option<(u64, u64)> {
    let topic = Topic::parse(name).ok()?;
    let known = node.hub.router.update_kept(&topic, |_, kept, stripe| stripe.known_position(kept))?;
    Some((known.epoch, known.offset))
}

/// Checks that the mirror of a topic that a node follows has what the store has.
fn check_mirror(
    node: &Node,
    name: &str,
    (epoch, top): (u64, u64),
    log: Option<&log::EpochLog>,
) -> Result<(), String> {
    let Ok(topic) = Topic::parse(name) else { return Ok(()) };
    node.hub.router.update_kept(&topic, |view, kept, stripe| {
        let Some(id) = stripe.find(kept).filter(|_| view.subscribers() > 0) else { return Ok(()) };
        let Some(stream) = stripe.table.get(id) else { return Ok(()) };
        let own = (stream.epoch(), stream.newest());
        if own != (Epoch::from_bits(epoch), top) {
            return Err(format!("the mirror is at {own:?}, and the store at {:?}", (epoch, top)));
        }
        for (offset, frame) in stream.messages(..) {
            let number = number_of(frame);
            let stored = log.and_then(|log| log.messages.get(&offset)).map(|message| message.number);
            if number != stored {
                return Err(format!("the mirror has {number:?} at {offset}, and the store {stored:?}"));
            }
        }
        Ok(())
    })
}
