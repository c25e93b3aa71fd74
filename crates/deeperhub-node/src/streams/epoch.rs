//! New epochs of topics, and what their subscribers are told.

use std::sync::Arc;

use deeperhub_history::Cursor;
use deeperhub_listener::Multicast;
use deeperhub_protocol::message::ServerMessage;
use deeperhub_protocol::{Epoch, GapReason, Topic};
use deeperhub_router::{Outgoing, Reach, TopicView};

use super::kept::{KeptStream, Remains, StreamStripe};
use super::stored::StoreRefused;
use super::{StreamRouter, Streams};
use crate::delivery::{Delivery, Sequenced};
use crate::planted::planted;
use crate::stream_counts::StreamContent;
use crate::trace::fan_out::PublishStamp;

impl Streams {
    /// Empties the stream of a topic, starts a new epoch, and tells its subscribers. Does nothing if
    /// the topic has no stream.
    ///
    /// # Errors
    ///
    /// Returns an error if the store takes nothing now. The stream is then as it was.
    pub(crate) fn clear(&self, router: &StreamRouter, topic: &Topic<'_>) -> Result<(), StoreRefused> {
        let at = self.clock.now();
        let (now, time) = (self.clock.seconds(at), self.clock.unix_ms(at));
        let mut remains = Remains::default();
        let clear = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
            let Some(id) = stripe.find(kept) else { return (None, Ok(())) };
            let Some(before) =
                stripe.table.get(id).map(|stream| Cursor::new(stream.epoch(), stream.newest()))
            else {
                return (None, Ok(()));
            };
            let random = other_epoch(before.epoch());
            if let Err(refused) = stripe.clear_stored(id, Epoch::from_bits(random)) {
                return (None, Err(refused));
            }
            if !stripe.table.clear(id, random, now, &mut remains.evicted) {
                return (None, Ok(()));
            }
            let Some(stream) = stripe.table.get(id) else { return (None, Ok(())) };
            let position = stream.position(time);
            let gap =
                ServerMessage::Gap { topic: topic.name(), from: None, position, reason: GapReason::Epoch };
            let (frame, name, rule_changes) = (gap.to_frame(), Arc::clone(topic.name()), stripe.rule_changes);
            let bytes = frame.len();
            let make = move || Delivery {
                frame: Multicast::new(frame.fork()),
                excluded: None,
                topic: None,
                stamp: PublishStamp::new(at, None),
                sequenced: Some(Sequenced {
                    topic: Arc::clone(&name),
                    before,
                    may_suspend: true,
                    content: StreamContent::Gap(GapReason::Epoch),
                    is_mirrored: false,
                    rule_changes,
                }),
            };
            let outgoing = Outgoing { bytes, make, reach: Reach::Topic };
            (Some(outgoing).filter(|_| !planted!(ClearNotTold)), Ok(()))
        };
        let (_, cleared) = router.publish_kept(topic, None, clear);
        self.finish(router, remains, now);
        cleared
    }
}

/// Returns a random number for an epoch that differs from `epoch`.
fn other_epoch(epoch: Epoch) -> u64 {
    loop {
        let random = fastrand::u64(..);
        if Epoch::from_bits(random) != epoch {
            return random;
        }
    }
}
