//! Published messages on their way to the subscribers.

use std::sync::Arc;

use deeperhub_history::Cursor;
use deeperhub_listener::Multicast;

use crate::connection_id::ConnectionId;
use crate::stream_counts::StreamContent;
use crate::trace::fan_out::PublishStamp;

/// Published message for the subscribers of one worker.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) frame: Multicast,
    /// Publisher, if it is excluded from its own message.
    pub(crate) excluded: Option<ConnectionId>,
    /// Topic name, if sent messages were observed at the time of the publish.
    pub(crate) topic: Option<Arc<str>>,
    pub(crate) stamp: PublishStamp,
    /// Place in the topic's stream, if the topic has history.
    pub(crate) sequenced: Option<Sequenced>,
}

/// Place of a delivery in the stream of its topic.
#[derive(Debug, Clone)]
pub(crate) struct Sequenced {
    pub(crate) topic: Arc<str>,
    /// Place of a subscriber that got everything before this delivery.
    pub(crate) before: Cursor,
    /// `true` if a subscriber that reads too slowly continues later from the stream. Otherwise its
    /// connection is closed.
    pub(crate) may_suspend: bool,
    pub(crate) content: StreamContent,
    /// `true` if the cluster's store gives the offsets. They start anew in each epoch, and a later
    /// epoch is larger. Otherwise they go on in the next epoch.
    pub(crate) is_mirrored: bool,
    /// Number of rule changes before the publish, so that deliveries of a stream that rules have
    /// removed differ from those of a later stream.
    pub(crate) rule_changes: u32,
}

impl Sequenced {
    /// Returns `true` if a subscriber at `cursor` has passed this delivery.
    pub(crate) fn is_before(&self, cursor: &Cursor) -> bool {
        let (before, passed) = (self.before.offset(), cursor.offset());
        if self.is_mirrored {
            (self.before.epoch(), before) < (cursor.epoch(), passed)
        } else {
            before < passed
        }
    }
}
