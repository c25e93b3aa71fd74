//! Fan-outs of publishes on a worker. A fan-out is the delivery of one publish to all its
//! subscribers on the worker; it may take several rounds. Each fan-out's latencies are observed.
//! Fan-outs of sampled publishes also get spans.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_protocol::ClientId;
use deeperhub_protocol::message::SpanContext;

use super::message::MESSAGING_SYSTEM;
use super::{ActiveSpan, Span, SpanKind, SpanLoss, Tracer};
use crate::metrics::WorkerMetrics;

/// Maximum `deliver` spans of one publish and worker. Bounds the spans of a large fan-out: the
/// first deliveries represent all.
const MAX_DELIVER_SPANS: usize = 16;

/// Maximum fan-outs that one worker traces at the same time, which bounds the memory of their
/// spans. Fan-outs over the limit have no spans.
const MAX_TRACED_FAN_OUTS: usize = 1024;

/// Start of a publish, with the state of its fan-out on one worker. Part of each delivery.
#[derive(Debug)]
pub(crate) struct PublishStamp {
    published_at: Instant,
    /// Round of the publish's last delivery on the worker, and the publish's index in the list of
    /// that round. Round 0 means that there was no delivery yet.
    seen: Cell<(u32, u32)>,
    /// Span of the publish. Each worker has its own allocation, so the reference count shows when
    /// the last delivery is done.
    span: Option<Arc<ActiveSpan>>,
}

impl PublishStamp {
    pub(crate) fn new(published_at: Instant, span: Option<&ActiveSpan>) -> Self {
        Self { published_at, seen: Cell::new((0, 0)), span: span.cloned().map(Arc::new) }
    }
}

/// Tracks the publishes that a worker is delivering.
#[derive(Debug)]
pub(crate) struct FanOutTracker {
    /// Number of the current round, counted from 1.
    round: u32,
    round_publishes: Vec<RoundPublish>,
    traced: Vec<TracedFanOut>,
    /// Number of sampled publishes over the limit that the metrics do not contain yet.
    untraced: u64,
}

/// Publish with deliveries in the current round, or several of one time without spans.
#[derive(Debug)]
struct RoundPublish {
    published_at: Instant,
    /// Time of the first delivery, and its difference to `published_at`.
    delivered_at: Instant,
    queue_wait: Duration,
    deliveries: u64,
    /// Index into the traced fan-outs, if this fan-out is traced.
    traced_index: Option<usize>,
}

/// Fan-out of a sampled publish.
#[derive(Debug)]
struct TracedFanOut {
    publish: Arc<ActiveSpan>,
    fan_out: ActiveSpan,
    /// Seconds from the publish to the first delivery.
    queue_wait: f64,
    deliveries: u64,
    /// Bytes of one delivery.
    bytes: u64,
    deliver_spans: Vec<DeliverSpan>,
}

/// Delivery that gets a span.
#[derive(Debug)]
struct DeliverSpan {
    client_id: ClientId,
    began: Instant,
    /// End of the write of the round with this delivery. `None` before that.
    written: Option<Instant>,
    bytes: u64,
    subscriber: Option<SpanContext>,
}

impl Default for FanOutTracker {
    fn default() -> Self {
        Self { round: 1, round_publishes: Vec::new(), traced: Vec::new(), untraced: 0 }
    }
}

impl FanOutTracker {
    /// Counts a delivery. If its fan-out is traced, returns the index with which the caller calls
    /// [`Self::record_subscriber`].
    #[inline]
    pub(crate) fn record_delivery(
        &mut self,
        stamp: &PublishStamp,
        bytes: usize,
        now: Instant,
        metrics: &mut WorkerMetrics,
    ) -> Option<usize> {
        let (round, index) = stamp.seen.get();
        if round == self.round
            && let Some(publish) = self.round_publishes.get_mut(index as usize)
        {
            publish.deliveries += 1;
            return publish.traced_index;
        }
        self.record_first_of_round(stamp, round == 0, bytes, now, metrics)
    }

    /// Counts the first delivery of a publish in a round. `is_new` is `true` if there was none in
    /// earlier rounds.
    fn record_first_of_round(
        &mut self,
        stamp: &PublishStamp,
        is_new: bool,
        bytes: usize,
        now: Instant,
        metrics: &mut WorkerMetrics,
    ) -> Option<usize> {
        // A burst of another node has one time, so its publishes share an entry.
        if stamp.span.is_none()
            && let Some(last) = self.round_publishes.last_mut()
            && (last.published_at, last.delivered_at) == (stamp.published_at, now)
            && last.traced_index.is_none()
        {
            if is_new {
                metrics.queue_wait.observe_duration(last.queue_wait);
            }
            last.deliveries += 1;
            stamp.seen.set((self.round, self.round_publishes.len() as u32 - 1));
            return None;
        }
        let queue_wait = now.saturating_duration_since(stamp.published_at);
        if is_new {
            metrics.queue_wait.observe_duration(queue_wait);
        }
        let traced_index = stamp.span.as_ref().and_then(|span| {
            let known = self.traced.iter().position(|traced| Arc::ptr_eq(&traced.publish, span));
            if known.is_some() || !is_new {
                return known;
            }
            if self.traced.len() >= MAX_TRACED_FAN_OUTS {
                self.untraced += 1;
                return None;
            }
            self.traced.push(TracedFanOut {
                fan_out: span.child(now)?,
                publish: Arc::clone(span),
                queue_wait: queue_wait.as_secs_f64(),
                deliveries: 0,
                bytes: bytes as u64,
                deliver_spans: Vec::new(),
            });
            Some(self.traced.len() - 1)
        });
        stamp.seen.set((self.round, self.round_publishes.len() as u32));
        self.round_publishes.push(RoundPublish {
            published_at: stamp.published_at,
            delivered_at: now,
            queue_wait,
            deliveries: 1,
            traced_index,
        });
        traced_index
    }

    /// Records the subscriber of a traced delivery, if it is one of the first
    /// [`MAX_DELIVER_SPANS`].
    pub(crate) fn record_subscriber(
        &mut self,
        traced_index: usize,
        client_id: &ClientId,
        subscriber: Option<SpanContext>,
        bytes: usize,
        now: Instant,
    ) {
        if let Some(traced) = self.traced.get_mut(traced_index)
            && traced.deliver_spans.len() < MAX_DELIVER_SPANS
        {
            traced.deliver_spans.push(DeliverSpan {
                client_id: client_id.clone(),
                began: now,
                written: None,
                bytes: bytes as u64,
                subscriber,
            });
        }
    }

    /// Observes latencies after the writes of a round, and ends the spans of finished fan-outs.
    #[inline]
    pub(crate) fn on_round_written(
        &mut self,
        now: Instant,
        worker: u16,
        tracer: &Tracer,
        metrics: &mut WorkerMetrics,
    ) {
        if self.round_publishes.is_empty() && self.traced.is_empty() {
            return;
        }
        for publish in self.round_publishes.drain(..) {
            let latency = now.saturating_duration_since(publish.published_at);
            metrics.latency.observe_durations(latency, publish.deliveries);
            if let Some(traced) = publish.traced_index.and_then(|index| self.traced.get_mut(index)) {
                traced.deliveries += publish.deliveries;
                let span = traced.publish.context();
                metrics.latency.exemplar(
                    latency,
                    span.trace_id(),
                    span.span_id(),
                    traced.publish.wall_at(now),
                );
                for deliver in traced.deliver_spans.iter_mut().filter(|deliver| deliver.written.is_none()) {
                    deliver.written = Some(now);
                }
            }
        }
        if self.untraced > 0 {
            tracer.metrics().dropped(SpanLoss::TooMany, std::mem::take(&mut self.untraced));
        }
        // Round 0 stands for "never", so it is skipped.
        self.round = self.round.checked_add(1).unwrap_or(1);
        if !self.traced.is_empty() {
            self.end_finished(now, worker, tracer);
        }
        if self.round_publishes.capacity() > 4096 {
            self.round_publishes = Vec::new();
        }
    }

    #[cold]
    fn end_finished(&mut self, now: Instant, worker: u16, tracer: &Tracer) {
        // If this is the only remaining reference, the router has dropped all deliveries.
        let is_finished = |traced: &mut TracedFanOut| Arc::strong_count(&traced.publish) == 1;
        for traced in self.traced.extract_if(.., is_finished) {
            traced.record_spans(now, worker, tracer);
        }
    }
}

impl TracedFanOut {
    fn record_spans(self, now: Instant, worker: u16, tracer: &Tracer) {
        let bytes = self.bytes.saturating_mul(self.deliveries);
        for deliver in self.deliver_spans {
            tracer.record(|| deliver.into_span(&self.fan_out, self.publish.context(), now));
        }
        tracer.record(|| {
            self.fan_out
                .end(now, "fan_out", SpanKind::Internal)
                .with_local_parent()
                .with("messaging.system", MESSAGING_SYSTEM)
                .with("messaging.operation.name", "fan_out")
                .with("deeperhub.worker", worker)
                .with("deeperhub.subscribers", self.deliveries)
                .with("deeperhub.bytes", bytes)
                .with("deeperhub.queue_wait_seconds", self.queue_wait)
        });
    }
}

impl DeliverSpan {
    fn into_span(self, fan_out: &ActiveSpan, publish: SpanContext, now: Instant) -> Span {
        let span = fan_out.child(self.began).unwrap_or_else(|| fan_out.clone());
        span.end(self.written.unwrap_or(now), "deliver", SpanKind::Consumer)
            .with_local_parent()
            .with("messaging.system", MESSAGING_SYSTEM)
            .with("messaging.operation.name", "deliver")
            .with("messaging.client.id", self.client_id.as_str().to_owned())
            .with("messaging.message.envelope.size", self.bytes)
            .with_link(Some(publish))
            .with_link(self.subscriber)
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_metrics::Cells;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn fan_outs_over_the_tracing_limit_are_counted() {
        let mut metrics = Metrics::new(&Cells::new(1), 1000).worker(0).unwrap();
        let (tracer, now) = (Tracer::default(), Instant::now());
        let mut fan_outs = FanOutTracker::default();
        let stamps: Vec<_> = (0..MAX_TRACED_FAN_OUTS + 3)
            .map(|_| PublishStamp::new(now, tracer.start(SpanContext::new(1, 2, true)).as_ref()))
            .collect();
        let mut traced_deliveries = 0;
        // Each publish is counted only at its first delivery.
        for _ in 0..2 {
            for stamp in &stamps {
                traced_deliveries +=
                    usize::from(fan_outs.record_delivery(stamp, 1, now, &mut metrics).is_some());
            }
        }
        fan_outs.on_round_written(now, 0, &tracer, &mut metrics);
        assert_eq!(traced_deliveries, 2 * MAX_TRACED_FAN_OUTS);
        assert_eq!(tracer.metrics().dropped.value(SpanLoss::TooMany), 3);
    }

    /// Publishes of a burst have one time, and yet each counts.
    #[test]
    fn publishes_of_one_time_are_counted_one_by_one() {
        let cells = Metrics::new(&Cells::new(1), 1000);
        let mut metrics = cells.worker(0).unwrap();
        let (tracer, now) = (Tracer::default(), Instant::now());
        let mut fan_outs = FanOutTracker::default();
        let later = now + Duration::from_millis(3);
        let times = [now, now, now, later, now];
        let stamps = times.map(|published_at| PublishStamp::new(published_at, None));
        for (round, written_at) in [(0, later), (1, later + Duration::from_millis(1))] {
            // Each publish has two deliveries in each round.
            for stamp in stamps.iter().chain(&stamps) {
                assert_eq!(fan_outs.record_delivery(stamp, 1, later, &mut metrics), None);
            }
            fan_outs.on_round_written(written_at, 0, &tracer, &mut metrics);
            assert_eq!(cells.latency.snapshot().count(), 10 * (round + 1));
            assert_eq!(cells.queue_wait.snapshot().count(), 5);
        }
        // Four publishes waited for 3 ms and took that long, and 4 ms in the second round.
        assert_eq!(cells.queue_wait.snapshot().sum(), 4 * 3_000_000);
        assert_eq!(cells.latency.snapshot().sum(), 8 * 3_000_000 + 8 * 4_000_000 + 2 * 1_000_000);
    }
}
