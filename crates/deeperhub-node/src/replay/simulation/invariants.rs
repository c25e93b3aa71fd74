//! Checks of the workers' own state.

use deeperhub_history::Delivery;
use deeperhub_protocol::Subscription;

use super::super::{Phase, Replays};
use super::topics::TOPICS;
use super::world::{Worker, World};

impl World {
    /// Checks the state of all replays.
    pub(super) fn check_replays(&self) -> Result<(), String> {
        for (index, worker) in self.workers.iter().enumerate() {
            check(worker).map_err(|text| format!("worker {index}: {text}"))?;
        }
        Ok(())
    }

    /// Checks the state of all replays when nothing happens any more.
    pub(super) fn check_is_calm(&self) -> Result<(), String> {
        for worker in &self.workers {
            let replays = worker.replays.connections.values().flat_map(|connection| &connection.replays);
            for replay in replays {
                let topic = TOPICS.iter().position(|topic| *topic == &*replay.topic);
                let look = topic.and_then(|topic| self.oracle.topics[topic].look);
                let is_sampled = look.is_some_and(|look| matches!(look.delivery, Delivery::Sample { .. }));
                if replay.phase != Phase::Sampled || !is_sampled {
                    return Err(format!("{replay:?} of {look:?} does not end"));
                }
            }
        }
        Ok(())
    }

    /// Checks that nothing is left of subscriptions that have ended.
    pub(super) fn check_is_empty(&self) -> Result<(), String> {
        for worker in &self.workers {
            let Replays { connections, samples, lingering, behind, .. } = &worker.replays;
            let are_listed = samples.next_tick().is_some() || !lingering.is_empty();
            if !connections.is_empty() || are_listed || *behind != 0 {
                return Err(format!("replays are left: {:?}", worker.replays));
            }
        }
        let mut kept = 0;
        for stripe in self.router.stripes() {
            self.router.visit_kept(stripe, |_, _, _| kept += 1);
        }
        let (topics, budget) = (self.router.topic_count(), self.budget());
        let (streams, bytes) = budget.map_or((0, 0), |budget| (budget.streams(), budget.bytes()));
        if (kept, topics, streams, bytes) != (0, 0, 0, 0) {
            return Err(format!(
                "the router keeps {kept} values and {topics} topics, with {streams} streams of {bytes} bytes"
            ));
        }
        Ok(())
    }
}

fn check(worker: &Worker) -> Result<(), String> {
    let Worker { replays, sockets, shard, .. } = worker;
    let mut behind = 0;
    for (key, connection) in &replays.connections {
        let Some(socket) = sockets.open.get(key) else {
            return Err(format!("a closed connection is behind: {connection:?}"));
        };
        let mut is_replaying = false;
        for replay in &connection.replays {
            let topic = Subscription::parse(&*replay.topic).unwrap();
            let is_behind = replay.is_behind();
            if is_behind && !shard.is_subscribed(*key, &topic) {
                return Err(format!("{} is replayed without a subscription", replay.topic));
            }
            behind += usize::from(replay.phase == Phase::Replaying);
            is_replaying |= replay.phase == Phase::Replaying;
        }
        if connection.replays.is_empty() {
            return Err("a connection without replays is kept".to_owned());
        }
        let continues = replays.ready.contains(key) || (connection.is_waiting && socket.wants_drain);
        if is_replaying && !continues && sockets.queues(*key) {
            return Err(format!("nothing continues {connection:?}"));
        }
    }
    if let Some((key, topic)) =
        replays.lingering.iter().find(|(key, topic)| replays.find(*key, topic).is_none())
    {
        return Err(format!("{topic} of {key} is kept after its replay"));
    }
    if behind != replays.behind {
        return Err(format!("{behind} replays are counted as {}", replays.behind));
    }
    Ok(())
}
