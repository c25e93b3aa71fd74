//! Quiet topics: what the store says about a topic without new messages.

use std::sync::Arc;
use std::time::Instant;

use deeperhub_cluster::StorePosition;
use deeperhub_history::{Cursor, Delivery as DeliveryPolicy, StreamId};
use deeperhub_protocol::Topic;
use deeperhub_protocol::message::ServerMessage;
use deeperhub_router::{Reach, TopicView};

use super::push::Push;
use super::reader::CHECK_INTERVAL;
use crate::delivery::Sequenced;
use crate::hub::Hub;
use crate::stream_counts::StreamContent;
use crate::streams::{KeptStream, Remains, StreamStripe};

impl Hub {
    /// Notes that a topic has no message up to an offset. Tells its subscribers, if that was long ago.
    pub(super) fn vouch(&self, topic: &Topic<'_>, vouched: StorePosition) {
        let at = self.streams.clock.now();
        let now = self.streams.clock.seconds(at);
        let mut remains = Remains::default();
        let prepare = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
            let mut pushes = Vec::new();
            let Some(id) = stripe.find(kept) else { return (pushes, ()) };
            if let Some(step) = stripe.on_vouched(id, vouched) {
                // Nothing is pushed: subscribers get no messages.
                self.apply_step((topic, stripe), id, step, (at, now), &mut remains);
            }
            pushes.extend(self.position_push((topic, stripe), id, at).map(Push::into_outgoing));
            (pushes, ())
        };
        self.router.publish_each_kept(topic, None, prepare);
        self.streams.finish(&self.router, remains, now);
    }

    /// Returns the position of a quiet topic for its subscribers, if they were not told for half of
    /// the `ttl`. A position that is older than the `ttl` cannot be recovered on other nodes.
    fn position_push(
        &self,
        (topic, stripe): (TopicView<'_>, &mut StreamStripe),
        id: StreamId,
        at: Instant,
    ) -> Option<Push> {
        let rules = stripe.table.budget().rules();
        let policy = rules.get(stripe.table.rule(id)?)?.policy();
        let (ttl, may_suspend) = (policy.ttl(), policy.delivery() != DeliveryPolicy::Close);
        // Checks are some time apart, and the first one of a quiet topic comes after its last message.
        let interval = (ttl / 2).saturating_sub(2 * CHECK_INTERVAL);
        if !stripe.is_telling_due(id, at, interval) {
            return None;
        }
        let stream = stripe.table.get(id)?;
        let time_ms = self.streams.position_ms(stream, stream.newest(), at);
        let (name, position) = (topic.name(), stream.position(time_ms));
        let frame = ServerMessage::Position { topic: name, position }.to_frame().keep();
        let before = Cursor::new(stream.epoch(), stream.newest().saturating_sub(1));
        let (topic, rule_changes) = (Arc::clone(name), stripe.rule_changes);
        let content = StreamContent::Position;
        let sequenced = Sequenced { topic, before, may_suspend, content, is_mirrored: true, rule_changes };
        let sequenced = Some(sequenced);
        Some(Push { frame, excluded: None, sequenced, observed: None, at, reach: Reach::Topic, span: None })
    }
}
