//! Delivery by sample: at each tick of a topic, its subscribers get the newest message.

use std::sync::Arc;
use std::time::Instant;

use deeperhub_history::{Delivery, Step};
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::{ClientId, Topic};

use super::items::Item;
use super::{Outlet, Phase, Replays};
use crate::planted::planted;
use crate::streams::{CurrentStream, StreamRouter, Streams};

impl Replays {
    /// Sends the newest messages of the topics whose tick is due. Returns `true` if the round's
    /// budget ended before.
    pub(super) fn tick(
        &mut self,
        (streams, router): (&Streams, &StreamRouter),
        now: Instant,
        outlet: &mut impl Outlet,
    ) -> bool {
        self.samples.list_due(now);
        while outlet.has_budget() {
            let Some((topic, keys)) = self.samples.take_pending() else { return false };
            self.send_samples(&topic, &keys, (streams, router), now, outlet);
        }
        self.samples.has_pending()
    }

    /// Sends the newest message of a topic to some of its subscribers.
    fn send_samples(
        &mut self,
        topic: &Arc<str>,
        keys: &[ConnectionKey],
        (streams, router): (&Streams, &StreamRouter),
        now: Instant,
        outlet: &mut impl Outlet,
    ) {
        let max_queued = outlet.max_queue_bytes() / 2;
        // A subscriber whose queue is long gets a later sample.
        let receiver = |&key: &ConnectionKey| {
            let has_room = outlet.queued_bytes(key).is_some_and(|queued| queued <= max_queued);
            has_room.then(|| outlet.client_id(key)).flatten().map(|client_id| (key, client_id))
        };
        let receivers: Vec<(ConnectionKey, ClientId)> = keys.iter().filter_map(receiver).collect();
        let Ok(parsed) = Topic::parse(&**topic) else { return };
        let seconds = streams.clock.seconds(now);
        let connections = &mut self.connections;
        let collected =
            streams.with_stream(router, &parsed, seconds, |&CurrentStream { stream, delivery, .. }| {
                let mut items: Vec<(ConnectionKey, Item)> = Vec::new();
                for (key, client_id) in &receivers {
                    let is_sampled = |replay: &&mut super::Replay| {
                        *replay.topic == **topic && replay.phase == Phase::Sampled
                    };
                    let connection = connections.get_mut(key);
                    let Some(replay) =
                        connection.and_then(|connection| connection.replays.iter_mut().find(is_sampled))
                    else {
                        continue;
                    };
                    while let Some(step) =
                        replay.cursor.advance_where(stream, delivery, |frame| frame.is_for(client_id))
                    {
                        match step {
                            Step::Message { prev, message, .. } => {
                                items.push((
                                    *key,
                                    Item::Message {
                                        frame: message.clone(),
                                        prev: prev.filter(|_| !planted!(PrevNotBridged)),
                                    },
                                ));
                                break;
                            }
                            Step::Gap(gap) => items.push((*key, Item::Gap(gap))),
                            // A sample is the newest message in memory.
                            Step::Stored { .. } | Step::Close => break,
                        }
                    }
                }
                (items, delivery)
            });
        let has_changed = !matches!(collected, Some((_, Delivery::Sample { .. })));
        for (key, item) in collected.into_iter().flat_map(|(items, _)| items) {
            self.items.push(item);
            self.send_items(key, topic, streams.look_ms(now), outlet);
        }
        if has_changed && !planted!(SamplingNotEnded) {
            // Another rule matches the topic now, or none. An ordinary step makes the subscriptions
            // live.
            for key in keys {
                self.replay_instead(*key, topic);
            }
        }
    }

    /// Turns a sampled subscription into one that replays.
    fn replay_instead(&mut self, key: ConnectionKey, topic: &Arc<str>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let replay = connection.replays.iter_mut().find(|replay| replay.topic == *topic);
        let Some(replay) = replay.filter(|replay| replay.phase == Phase::Sampled) else { return };
        replay.phase = Phase::Replaying;
        self.behind += 1;
        self.samples.remove(key, topic);
        self.continue_soon(key);
    }
}
