//! New epochs of topics, and what their subscribers are told.

use std::sync::Arc;
use std::time::Instant;

use deeperhub_history::{Budget, Cursor, RuleId, StreamId};
use deeperhub_listener::Multicast;
use deeperhub_protocol::message::ServerMessage;
use deeperhub_protocol::{Epoch, GapReason, Topic};
use deeperhub_router::{Outgoing, Reach, TopicView};

use super::kept::{KeptStream, NoStream, Remains, StreamStripe};
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
            let outgoing = tell_epoch(topic, (stripe, id), before, (at, time));
            (outgoing.filter(|_| !planted!(ClearNotTold)), Ok(()))
        };
        let (_, cleared) = router.publish_kept(topic, None, clear);
        self.finish(router, remains, now);
        cleared
    }

    /// Opens the streams of topics that rules have given a history again, and tells their subscribers.
    /// These stand at the ends of the streams before, so the next message would not follow. The nodes
    /// of a cluster read such topics from the store instead.
    pub(super) fn reopen(&self, router: &StreamRouter) {
        let at = self.clock.now();
        let mut full_rules = Vec::new();
        for stripe in router.stripes() {
            let mut ended = Vec::new();
            router.visit_kept(stripe, |topic, kept, stripe| {
                if topic.subscribers() > 0 && stripe.find(kept).is_none() && stripe.end(kept).is_some() {
                    ended.push(Arc::clone(topic.name()));
                }
            });
            for name in ended {
                let Ok(topic) = Topic::parse(&*name) else { continue };
                let Some((budget, rule)) = self.rule(&topic) else { continue };
                if full_rules.contains(&rule) {
                    continue;
                }
                let reopened =
                    self.with_room(router, || self.reopen_topic(router, &topic, (&budget, rule), at));
                if let Err(NoStream::TooMany(rule)) = reopened {
                    full_rules.push(rule);
                }
            }
        }
    }

    fn reopen_topic(
        &self,
        router: &StreamRouter,
        topic: &Topic<'_>,
        rule: (&Arc<Budget>, RuleId),
        at: Instant,
    ) -> Result<(), NoStream> {
        let (now, time) = self.clock.seconds_and_unix_ms(at);
        let mut remains = Remains::default();
        let reopen = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
            let is_open = stripe.find(kept).is_some();
            let Some(end) = stripe.end(kept).filter(|_| !is_open) else { return (None, Ok(())) };
            match stripe.find_or_open(topic, kept, rule, now, &mut remains) {
                Ok(id) => {
                    let outgoing = tell_epoch(topic, (stripe, id), end, (at, time));
                    (outgoing.filter(|_| !planted!(RegainedRuleNotTold)), Ok(()))
                }
                Err(no_stream) => (None, Err(no_stream)),
            }
        };
        let (_, reopened) = router.publish_kept(topic, None, reopen);
        self.finish(router, remains, now);
        reopened
    }
}

/// Returns what tells the subscribers of a topic its new epoch. `before` is where they stand.
fn tell_epoch(
    topic: TopicView<'_>,
    (stripe, id): (&StreamStripe, StreamId),
    before: Cursor,
    (at, time): (Instant, u64),
) -> Option<Outgoing<impl FnMut() -> Delivery + use<>>> {
    let (position, reason) = (stripe.table.get(id)?.position(time), GapReason::Epoch);
    let frame = ServerMessage::Gap { topic: topic.name(), from: None, position, reason }.to_frame();
    let (name, rule_changes, bytes) = (Arc::clone(topic.name()), stripe.rule_changes, frame.len());
    let make = move || Delivery {
        frame: Multicast::new(frame.fork()),
        excluded: None,
        topic: None,
        stamp: PublishStamp::new(at, None),
        sequenced: Some(Sequenced {
            topic: Arc::clone(&name),
            before,
            may_suspend: true,
            content: StreamContent::Gap(reason),
            is_mirrored: false,
            rule_changes,
        }),
    };
    Some(Outgoing { bytes, make, reach: Reach::Topic })
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
