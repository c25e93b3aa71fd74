//! Room for new streams: a rule that has as many streams as it may have loses idle ones.

use deeperhub_history::RuleId;

use super::kept::{NoStream, Remains};
use super::{StreamRouter, Streams};

/// Streams that make room for one new stream at most. A rule has more than one too many if its
/// maximum has fallen. This many take some milliseconds.
const MAX_REMOVED: usize = 1024;

/// Result of a look at one stripe.
enum Look {
    /// The rule has room.
    HasRoom,
    /// A stream was removed.
    Removed,
    /// All streams of the rule in this stripe have subscribers.
    NoneIdle,
}

impl Streams {
    /// Calls `attempt`, which may open a stream. If the topic's rule has as many streams as it may
    /// have, makes room and calls it once more.
    #[inline]
    pub(crate) fn with_room<T>(
        &self,
        router: &StreamRouter,
        mut attempt: impl FnMut() -> Result<T, NoStream>,
    ) -> Result<T, NoStream> {
        match attempt() {
            Err(NoStream::TooMany(rule)) if self.make_room(router, rule) => attempt(),
            outcome => outcome,
        }
    }

    /// Removes streams of a rule until it has room for one more: as many as are too many, those that
    /// are idle longest in their stripes. Returns `false` if nothing was found to remove.
    fn make_room(&self, router: &StreamRouter, rule: RuleId) -> bool {
        let mut removed = 0;
        while removed < MAX_REMOVED {
            let before = removed;
            for stripe in stripes(router) {
                match self.look(router, stripe, rule, 1) {
                    Look::HasRoom => return true,
                    Look::Removed => removed += 1,
                    Look::NoneIdle => {}
                }
            }
            if removed == before {
                break;
            }
        }
        removed > 0
    }

    /// Removes idle streams of rules that have more streams than they may have, because a maximum
    /// has fallen.
    pub(crate) fn trim(&self, router: &StreamRouter) {
        let budget = self.budget.load();
        for (rule, _) in budget.rules().iter() {
            let is_over = || budget.usage(rule).is_some_and(|usage| usage.streams > usage.max_streams);
            while is_over() && self.remove_idlest(router, rule) {}
        }
    }

    /// Removes idle streams of all rules while memory is short.
    pub(super) fn yield_streams(&self, router: &StreamRouter) {
        let budget = self.budget.load();
        for (rule, _) in budget.rules().iter() {
            let half = budget.usage(rule).map_or(0, |usage| usage.streams / 2);
            for _ in 0..half {
                if !self.remove_idlest(router, rule) {
                    break;
                }
            }
        }
    }

    /// Removes the stream of a rule that is idle longest in some stripe. Returns `false` if all
    /// streams of the rule have subscribers.
    fn remove_idlest(&self, router: &StreamRouter, rule: RuleId) -> bool {
        stripes(router).any(|stripe| matches!(self.look(router, stripe, rule, u64::MAX), Look::Removed))
    }

    /// Removes the stream of a rule that is idle longest in a stripe, unless the rule has room for so
    /// many `more`.
    fn look(&self, router: &StreamRouter, stripe: usize, rule: RuleId, more: u64) -> Look {
        let mut remains = Remains::default();
        let look = router.update_stripe(stripe, |stripe| {
            if stripe.table.budget().excess_streams(rule, more) == 0 {
                return Look::HasRoom;
            }
            match stripe.table.remove_idlest(rule, &mut remains.evicted) {
                Some(name) => {
                    remains.removed.push(name);
                    Look::Removed
                }
                None => Look::NoneIdle,
            }
        });
        self.count_evicted(&remains);
        for name in &remains.removed {
            self.forget(router, name);
        }
        look.unwrap_or(Look::NoneIdle)
    }
}

/// Returns all stripes, from a random one on.
fn stripes(router: &StreamRouter) -> impl Iterator<Item = usize> {
    let stripes = router.stripes();
    let first = fastrand::usize(..stripes.len().max(1));
    stripes.clone().cycle().skip(first).take(stripes.len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use deeperhub_history::Rules;
    use deeperhub_metrics::Cells;
    use deeperhub_protocol::message::StreamMessage;
    use deeperhub_protocol::{RawJson, Topic};
    use deeperhub_router::{Config, Router};

    use super::*;
    use crate::config::HistoryLimits;
    use crate::metrics::HistoryMetrics;
    use crate::streams::{Clock, PublishRefusal, StreamPublish};

    /// Returns limits with one rule for the topics below `room`.
    fn limits(max_streams: u64) -> HistoryLimits {
        let rule = format!("room.>: history=2 max_streams={max_streams}").parse().unwrap();
        HistoryLimits { rules: Rules::new([rule]).unwrap(), ..HistoryLimits::default() }
    }

    fn node(max_streams: u64) -> (Streams, StreamRouter) {
        let clock = Arc::new(Clock::new(Instant::now()));
        let metrics = HistoryMetrics::new(&Cells::new(1));
        let streams = Streams::new(&limits(max_streams), clock, None, None, None, metrics);
        let router = Router::keeping_with(1, Config::default(), |_| streams.stripe());
        (streams, router)
    }

    fn publish((streams, router): &(Streams, StreamRouter), number: u32) -> Result<(), PublishRefusal> {
        let topic = Topic::parse(format!("room.{number}")).unwrap();
        let message = StreamMessage {
            topic: topic.as_str(),
            message: RawJson::parse("1").unwrap(),
            from: None,
            time: 0,
            traceparent: None,
            tracestate: None,
        };
        let now = Instant::now();
        let publish = StreamPublish {
            topic: &topic,
            message: &message,
            once: None,
            excluded: None,
            source: None,
            is_observed: false,
            span: None,
            published_at: now,
            now: streams.clock.seconds(now),
        };
        let (budget, rule) = streams.rule(&topic).unwrap();
        streams.publish(router, None, &publish, (&budget, rule)).map(|published| assert!(published.is_some()))
    }

    fn follow((_, router): &(Streams, StreamRouter), number: u32, is_followed: bool) {
        let topic = Topic::parse(format!("room.{number}")).unwrap();
        router.update_kept(&topic, |_, kept, stripe| {
            let id = stripe.find(kept).unwrap();
            stripe.table.set_followed(id, is_followed, Default::default());
        });
    }

    fn has_stream((streams, router): &(Streams, StreamRouter), number: u32) -> bool {
        streams.topic_history(router, &Topic::parse(format!("room.{number}")).unwrap()).is_some()
    }

    #[test]
    fn a_lower_maximum_makes_room_by_as_many_streams_as_are_too_many() {
        let node = node(500);
        (0..300).for_each(|number| publish(&node, number).unwrap());
        follow(&node, 7, true);
        node.0.set_limits(&node.1, &limits(3));
        assert_eq!(node.0.streams(), 300, "streams stay until their room is needed");
        for number in 1000..1010 {
            assert_eq!(publish(&node, number), Ok(()), "idle streams could go");
        }
        let rule = node.0.rule(&Topic::parse("room.1").unwrap()).unwrap().1;
        assert!(node.0.make_room(&node.1, rule));
        assert_eq!(node.0.streams(), 2, "there is room for one");
        assert!(has_stream(&node, 7), "a stream with subscribers is never removed");
    }

    #[test]
    fn rules_with_too_many_streams_lose_the_idle_ones() {
        let node = node(500);
        (0..300).for_each(|number| publish(&node, number).unwrap());
        (0..4).for_each(|number| follow(&node, number, true));
        node.0.trim(&node.1);
        assert_eq!(node.0.streams(), 300);
        node.0.set_limits(&node.1, &limits(10));
        node.0.trim(&node.1);
        assert_eq!(node.0.streams(), 10);
        node.0.set_limits(&node.1, &limits(2));
        node.0.trim(&node.1);
        assert_eq!(node.0.streams(), 4, "the others have subscribers");
        assert_eq!(publish(&node, 1000), Err(PublishRefusal::TooManyTopics));
        follow(&node, 0, false);
        // A topic in the same stripe takes the place of the idle stream. For any other one, three
        // are still too many.
        let refusal = publish(&node, 1000).err();
        assert!([None, Some(PublishRefusal::TooManyTopics)].contains(&refusal), "{refusal:?}");
        assert_eq!(node.0.streams(), if refusal.is_some() { 3 } else { 4 });
        assert!(!has_stream(&node, 0), "it was idle");
        (1..4).for_each(|number| follow(&node, number, false));
        assert_eq!(publish(&node, 1000), Ok(()));
    }
}
