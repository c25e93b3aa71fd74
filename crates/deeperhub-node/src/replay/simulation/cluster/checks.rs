//! Checks after the faults have ended.

use std::collections::BTreeMap;
use std::time::Duration;

use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::EncodedDelivery;
use deeperhub_protocol::{Epoch, Topic};
use serde::Deserialize;

use super::super::real_clients::describe;
use super::super::socket::Payload;
use super::super::topics::TOPICS;
use super::node::Node;
use super::settings::Settings;
use super::{Simulation, broker, log};

/// Largest difference of the clocks of the broker and the nodes, and of their whole seconds.
const AGE_MARGIN: Duration = Duration::from_secs(5);

impl Simulation {
    /// Checks that all publishes are answered, that all handles are at the newest message, and that
    /// all mirrors have what the store has.
    pub(super) fn check_converged(&mut self, are_published: bool) -> Result<(), String> {
        let now = self.broker_ms();
        let mut tops = BTreeMap::new();
        for (index, name) in TOPICS.iter().enumerate() {
            let (epoch, kept) = self.store.content(name, now);
            let (_, top) = self.store.positions(name, now);
            tops.insert(index, epoch);
            let ttl = Settings::min_ttl(&broker::topic(index)).saturating_sub(AGE_MARGIN);
            let young_from_ms = now.saturating_sub(ttl.as_millis() as u64);
            let is_sparse = self.settings.is_sparse;
            let log = self.logs[index].epochs.get(&epoch);
            for node in self.nodes.iter().flatten() {
                check_mirror(
                    node,
                    name,
                    StoreView { epoch, top, is_sparse, kept: &kept, young_from_ms, log },
                )
                .map_err(|text| format!("{} {name}: {text}", node.hub.node_id))?;
            }
        }
        self.check_streams()?;
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

/// Content of a topic in the store.
#[derive(Debug, Clone, Copy)]
struct StoreView<'a> {
    epoch: u64,
    /// The newest offset, of the topic or of the stream that it shares.
    top: u64,
    is_sparse: bool,
    /// Offsets of the messages that are kept.
    kept: &'a [u64],
    /// Time of the store from which on a node leaves out no message for its age.
    young_from_ms: u64,
    log: Option<&'a log::EpochLog>,
}

/// Checks that the mirror of a topic that a node follows has what the store has.
fn check_mirror(node: &Node, name: &str, store: StoreView<'_>) -> Result<(), String> {
    let Ok(topic) = Topic::parse(name) else { return Ok(()) };
    let message = |offset: u64| store.log.and_then(|log| log.messages.get(&offset));
    let stored = |offset: u64| message(offset).map(|message| message.number);
    node.hub.router.update_kept(&topic, |view, kept, stripe| {
        let Some(id) = stripe.find(kept).filter(|_| view.subscribers() > 0) else { return Ok(()) };
        let Some(stream) = stripe.table.get(id) else { return Ok(()) };
        let last = store.kept.last().copied().unwrap_or(if store.is_sparse { 0 } else { store.top });
        let is_at_top = (last..=store.top).contains(&stream.newest());
        if stream.epoch() != Epoch::from_bits(store.epoch) || !is_at_top {
            let own = (stream.epoch(), stream.newest());
            return Err(format!("the mirror is at {own:?}, and the store at {:?}", (store.epoch, store.top)));
        }
        for (offset, frame) in stream.messages(..) {
            let (number, stored) = (number_of(frame), stored(offset));
            if number != stored {
                return Err(format!("the mirror has {number:?} at {offset}, and the store {stored:?}"));
            }
        }
        let oldest = stream.oldest();
        let is_lacking = |offset: u64| {
            let is_young = message(offset).is_none_or(|message| message.time >= store.young_from_ms);
            offset >= oldest && is_young && stream.message(offset).is_none()
        };
        match store.kept.iter().find(|offset| is_lacking(**offset)) {
            Some(offset) => {
                Err(format!("the mirror lacks {:?} at {offset} from {oldest} on", stored(*offset)))
            }
            None => Ok(()),
        }
    })
}
