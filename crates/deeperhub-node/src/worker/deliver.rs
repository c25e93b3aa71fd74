//! Delivery of published messages to the subscribers of one worker.

use std::future::Future;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::SystemTime;

use deeperhub_events::{Event, EventDetails};
use deeperhub_listener::Connections;
use deeperhub_router::{DeliveryFlow, InboxPosition, WORKER_SUBSCRIBER};

use super::NodeWorker;
use super::outlet::ConnectionOutlet;
use super::refusals::Settled;
use crate::delivery::Delivery;
use crate::metrics::SentType;
use crate::session::Session;
use crate::stream_counts::{StreamContent, StreamCounts};

/// Messages that a call of [`NodeWorker::deliver`] delivers.
pub(super) enum DeliveryScope<'c, 'w> {
    /// All queued messages. If none remain, the worker registers for a wake-up.
    All(&'c mut task::Context<'w>),
    /// Messages published before a position.
    Until(InboxPosition),
}

impl NodeWorker {
    /// Delivers messages published before `position`. Returns `false` if the round's budget ended
    /// before all were delivered.
    pub(super) fn deliver_until(
        &mut self,
        position: InboxPosition,
        connections: &mut Connections<'_, Session>,
    ) -> bool {
        self.shard.has_delivered(position)
            || self.deliver(DeliveryScope::Until(position), connections).is_pending()
    }

    /// Delivers queued messages. Returns `Ready` if some of `scope` may remain.
    pub(super) fn deliver(
        &mut self,
        scope: DeliveryScope<'_, '_>,
        connections: &mut Connections<'_, Session>,
    ) -> Poll<()> {
        let Self { shard, metrics, hub, index, fan_out_tracker, replays, refusals, .. } = self;
        // Most deliveries are of topics without history.
        let (mut sent, mut of_streams) = (0, StreamCounts::default());
        let now = connections.now();
        let deliver_to_one = |key, delivery: &Delivery| {
            if let Some(publisher) = delivery.excluded
                && publisher.key == key
                && publisher.worker == *index
                && Self::find_session(publisher, connections).is_some()
            {
                if let Some(session) = refusals.deliver_position(key, delivery, replays, connections) {
                    session.sent += 1;
                    of_streams.count(StreamContent::Position);
                }
            } else if let Some(session) = refusals.deliver(key, delivery, replays, connections) {
                match &delivery.sequenced {
                    Some(sequenced) => of_streams.count(sequenced.content),
                    None => sent += 1,
                }
                session.sent += 1;
                let bytes = delivery.frame.frame().len();
                if let Some(traced_index) =
                    fan_out_tracker.record_delivery(&delivery.stamp, bytes, now, metrics)
                {
                    fan_out_tracker.record_subscriber(
                        traced_index,
                        &session.client_id,
                        session.handshake_span(),
                        bytes,
                        now,
                    );
                }
                if let Some(topic) = &delivery.topic {
                    let details = EventDetails::MessageSent {
                        message_type: SentType::Message.name(),
                        topic: Some(Arc::clone(topic)),
                        bytes,
                    };
                    hub.bus.publish(Event::new(SystemTime::now(), session.client_id.clone(), details));
                }
            } else if key == WORKER_SUBSCRIBER {
                // Usual deliveries find a connection and do not reach this check.
                hub.canary.on_probe_delivered(*index, delivery.frame.frame().as_bytes());
            }
            if connections.send_budget() == 0 { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
        };
        let poll = match scope {
            DeliveryScope::All(cx) => shard.poll_deliver(cx, deliver_to_one),
            DeliveryScope::Until(position) if shard.deliver_until(position, deliver_to_one) => Poll::Pending,
            DeliveryScope::Until(_) => Poll::Ready(()),
        };
        let Settled { suspended, sent: sent_late } = refusals.settle((shard, replays), now, connections);
        if suspended > 0 {
            metrics.suspensions.add(suspended);
        }
        metrics.count_sent(SentType::Message, sent);
        metrics.count_streams(of_streams);
        metrics.count_streams(sent_late);
        poll
    }

    /// Continues the replays of subscriptions that are behind. Returns `Ready` if more can be sent
    /// at once.
    pub(super) fn replay(
        &mut self,
        cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, Session>,
    ) -> Poll<()> {
        let Self { replays, hub, shard, metrics, tick_timer, .. } = self;
        let now = connections.now();
        let mut outlet = ConnectionOutlet { connections, hub };
        let mut has_more = replays.run((&hub.streams, &hub.router, shard), now, &mut outlet);
        let counts = replays.take_counts();
        metrics.behind.set(i64::try_from(replays.behind()).unwrap_or(i64::MAX));
        if counts.messages > 0 {
            metrics.recovered.add(counts.messages);
        }
        metrics.count_streams(counts);
        match replays.next_tick() {
            None => *tick_timer = None,
            Some(tick) => {
                let timer = tick_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(tick.into())));
                if timer.deadline() != tick.into() {
                    timer.as_mut().reset(tick.into());
                }
                has_more |= timer.as_mut().poll(cx).is_ready();
            }
        }
        if has_more { Poll::Ready(()) } else { Poll::Pending }
    }
}
