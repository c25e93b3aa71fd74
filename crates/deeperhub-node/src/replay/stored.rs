//! Messages that only the store has, for subscribers that are behind.

use std::sync::Arc;

use deeperhub_listener::ConnectionKey;

use super::items::Item;
use super::{Outlet, Phase, Replay, Replays};
use crate::streams::{HubShard, ReadPurpose, ReadRequest, ReadResult, StoreNotice, Streams};

impl Replays {
    /// Starts to read the next messages of a replay on another thread.
    pub(super) fn read_stored(
        &mut self,
        key: ConnectionKey,
        topic: &str,
        request: ReadRequest,
        (streams, shard): (&Streams, &HubShard),
    ) {
        let Some(disk) = &streams.disk else { return };
        let replays =
            self.connections.get_mut(&key).into_iter().flat_map(|connection| &mut connection.replays);
        let is_replaying = |replay: &&mut Replay| *replay.topic == *topic && replay.phase == Phase::Replaying;
        let Some(replay) = replays.into_iter().find(is_replaying) else { return };
        self.reads += 1;
        let (read, worker) = (self.reads, shard.id().0);
        replay.phase = Phase::Reading { read, to: request.from.saturating_add(request.limit as u64) - 1 };
        let links = Arc::clone(disk);
        disk.read(request, ReadPurpose::Replay, move |result| {
            links.notify(worker, StoreNotice::Replay { key, read, result });
        });
    }

    /// Sends messages that were read from the store, and continues the replay. Does nothing if the
    /// subscription has ended meanwhile.
    pub(crate) fn on_read(
        &mut self,
        key: ConnectionKey,
        read: u64,
        result: ReadResult,
        time_ms: u64,
        outlet: &mut impl Outlet,
    ) {
        let Some(client_id) = outlet.client_id(key) else { return };
        let replays =
            self.connections.get_mut(&key).into_iter().flat_map(|connection| &mut connection.replays);
        let mut reading = replays.filter_map(|replay| match replay.phase {
            Phase::Reading { read: present, to } if present == read => Some((replay, to)),
            _ => None,
        });
        let Some((replay, to)) = reading.next() else { return };
        replay.phase = Phase::Replaying;
        match result {
            Ok(frames) if !frames.is_empty() => {
                for (offset, frame) in frames {
                    self.items.items.extend(replay.cursor.skip_lost(offset).map(Item::Gap));
                    if let Some(prev) = replay.cursor.pass_stored(offset, frame.is_for(&client_id)) {
                        self.items.push(Item::Message { frame, prev });
                    }
                }
            }
            // The next step tells that the messages are lost, unless the history was emptied.
            Ok(_) | Err(_) => replay.lost_before = Some(to + 1),
        }
        let topic = Arc::clone(&replay.topic);
        self.send_items(key, &topic, time_ms, outlet);
        self.continue_soon(key);
    }
}
