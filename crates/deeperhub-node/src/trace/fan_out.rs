//! What a worker does of publishes, round by round: how long they took, and their spans where they are sampled.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use deeperhub_protocol::ClientId;
use deeperhub_protocol::message::SpanContext;

use super::message::SYSTEM;
use super::{ActiveSpan, Span, SpanKind, SpanLoss, Tracer};
use crate::metrics::WorkerMetrics;

/// Spans `deliver` of one publish and worker: the first deliveries stand for all.
const DELIVER_SPANS: usize = 16;

/// Fan-outs of sampled publishes that one worker follows at a time; of more there are no spans.
const MAX_FOLLOWED: usize = 1024;

/// When a publish was made, and where the worker that delivers it counts it. Part of what is handed over.
#[derive(Debug)]
pub(crate) struct Stamp {
    published: Instant,
    /// The round in which the worker saw it last, and its place among those of that round.
    seen: Cell<(u32, u32)>,
    /// The publish's span. An allocation of this worker's own, so that its count tells when the last delivery is done.
    span: Option<Arc<ActiveSpan>>,
}

impl Stamp {
    pub(crate) fn new(published: Instant, span: Option<&ActiveSpan>) -> Self {
        Self { published, seen: Cell::new((0, 0)), span: span.cloned().map(Arc::new) }
    }
}

/// The publishes that a worker is delivering.
#[derive(Debug)]
pub(crate) struct FanOuts {
    /// Number of the round, from 1.
    round: u32,
    of_round: Vec<OfRound>,
    followed: Vec<Followed>,
    /// Sampled publishes over the limit of followed ones that are not counted yet.
    unfollowed: u64,
}

/// One publish in one round.
#[derive(Debug)]
struct OfRound {
    published: Instant,
    deliveries: u64,
    /// Its place among those that are followed.
    followed: Option<usize>,
}

/// A sampled publish.
#[derive(Debug)]
struct Followed {
    publish: Arc<ActiveSpan>,
    fan_out: ActiveSpan,
    waited: f64,
    deliveries: u64,
    bytes: u64,
    delivers: Vec<Deliver>,
}

/// One delivery that gets a span.
#[derive(Debug)]
struct Deliver {
    client_id: ClientId,
    began: Instant,
    /// When the worker had written, or tried to.
    written: Option<Instant>,
    bytes: u64,
    subscriber: Option<SpanContext>,
}

impl Default for FanOuts {
    fn default() -> Self {
        Self { round: 1, of_round: Vec::new(), followed: Vec::new(), unfollowed: 0 }
    }
}

impl FanOuts {
    /// Counts a delivery. Answers whether the publish is followed, so that [`Self::delivered_to`] is wanted.
    #[inline]
    pub(crate) fn delivered(
        &mut self,
        stamp: &Stamp,
        bytes: usize,
        now: Instant,
        metrics: &mut WorkerMetrics,
    ) -> Option<usize> {
        let (round, place) = stamp.seen.get();
        if round == self.round
            && let Some(publish) = self.of_round.get_mut(place as usize)
        {
            publish.deliveries += 1;
            return publish.followed;
        }
        self.first_of_round(stamp, round == 0, bytes, now, metrics)
    }

    fn first_of_round(
        &mut self,
        stamp: &Stamp,
        is_new: bool,
        bytes: usize,
        now: Instant,
        metrics: &mut WorkerMetrics,
    ) -> Option<usize> {
        let waited = now.saturating_duration_since(stamp.published);
        if is_new {
            metrics.queue_wait.observe_duration(waited);
        }
        let followed = stamp.span.as_ref().and_then(|span| {
            let known = self.followed.iter().position(|followed| Arc::ptr_eq(&followed.publish, span));
            if known.is_some() || !is_new {
                return known;
            }
            if self.followed.len() >= MAX_FOLLOWED {
                self.unfollowed += 1;
                return None;
            }
            self.followed.push(Followed {
                fan_out: span.child(now)?,
                publish: Arc::clone(span),
                waited: waited.as_secs_f64(),
                deliveries: 0,
                bytes: bytes as u64,
                delivers: Vec::new(),
            });
            Some(self.followed.len() - 1)
        });
        stamp.seen.set((self.round, self.of_round.len() as u32));
        self.of_round.push(OfRound { published: stamp.published, deliveries: 1, followed });
        followed
    }

    /// Notes who got a delivery of a followed publish, of the first few.
    pub(crate) fn delivered_to(
        &mut self,
        followed: usize,
        client_id: &ClientId,
        subscriber: Option<SpanContext>,
        bytes: usize,
        now: Instant,
    ) {
        if let Some(followed) = self.followed.get_mut(followed)
            && followed.delivers.len() < DELIVER_SPANS
        {
            followed.delivers.push(Deliver {
                client_id: client_id.clone(),
                began: now,
                written: None,
                bytes: bytes as u64,
                subscriber,
            });
        }
    }

    /// The round's writes are done: counts times, and ends the spans of what is delivered to the last subscriber.
    #[inline]
    pub(crate) fn written(
        &mut self,
        now: Instant,
        worker: u16,
        tracer: &Tracer,
        metrics: &mut WorkerMetrics,
    ) {
        if self.of_round.is_empty() && self.followed.is_empty() {
            return;
        }
        for publish in self.of_round.drain(..) {
            let latency = now.saturating_duration_since(publish.published);
            metrics.latency.observe_durations(latency, publish.deliveries);
            if let Some(followed) = publish.followed.and_then(|followed| self.followed.get_mut(followed)) {
                followed.deliveries += publish.deliveries;
                let span = followed.publish.context();
                metrics.latency.exemplar(
                    latency,
                    span.trace_id(),
                    span.span_id(),
                    followed.publish.wall_at(now),
                );
                for deliver in followed.delivers.iter_mut().filter(|deliver| deliver.written.is_none()) {
                    deliver.written = Some(now);
                }
            }
        }
        if self.unfollowed > 0 {
            tracer.metrics().dropped(SpanLoss::TooMany, std::mem::take(&mut self.unfollowed));
        }
        // 0 stands for never.
        self.round = self.round.checked_add(1).unwrap_or(1);
        if !self.followed.is_empty() {
            self.end_finished(now, worker, tracer);
        }
        if self.of_round.capacity() > 4096 {
            self.of_round = Vec::new();
        }
    }

    #[cold]
    fn end_finished(&mut self, now: Instant, worker: u16, tracer: &Tracer) {
        // Where ours is the only reference left, the router has dropped what it handed over.
        let is_finished = |followed: &mut Followed| Arc::strong_count(&followed.publish) == 1;
        for followed in self.followed.extract_if(.., is_finished) {
            followed.end(now, worker, tracer);
        }
    }
}

impl Followed {
    fn end(self, now: Instant, worker: u16, tracer: &Tracer) {
        let bytes = self.bytes.saturating_mul(self.deliveries);
        let parent = self.fan_out.context();
        for deliver in self.delivers {
            tracer.record(|| deliver.into_span(&self.fan_out, self.publish.context(), now));
        }
        tracer.record(|| {
            let fan_out = self.fan_out.end(now, "fan_out", SpanKind::Internal).within();
            debug_assert_eq!(fan_out.context, parent);
            fan_out
                .with("messaging.system", SYSTEM)
                .with("messaging.operation.name", "fan_out")
                .with("deeperhub.worker", worker)
                .with("deeperhub.subscribers", self.deliveries)
                .with("deeperhub.bytes", bytes)
                .with("deeperhub.queue_wait_seconds", self.waited)
        });
    }
}

impl Deliver {
    fn into_span(self, fan_out: &ActiveSpan, publish: SpanContext, now: Instant) -> Span {
        let span = fan_out.child(self.began).unwrap_or_else(|| fan_out.clone());
        span.end(self.written.unwrap_or(now), "deliver", SpanKind::Consumer)
            .within()
            .with("messaging.system", SYSTEM)
            .with("messaging.operation.name", "deliver")
            .with("messaging.client.id", self.client_id.as_str().to_owned())
            .with("messaging.message.envelope.size", self.bytes)
            .linked(Some(publish))
            .linked(self.subscriber)
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_metrics::Cells;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn fan_outs_that_are_too_many_to_follow_are_counted() {
        let mut metrics = Metrics::new(&Cells::new(1), 1000).worker(0).unwrap();
        let (tracer, now) = (Tracer::default(), Instant::now());
        let mut fan_outs = FanOuts::default();
        let stamps: Vec<_> = (0..MAX_FOLLOWED + 3)
            .map(|_| Stamp::new(now, tracer.start(SpanContext::new(1, 2, true)).as_ref()))
            .collect();
        let mut followed = 0;
        // The second delivery of a publish is not counted.
        for _ in 0..2 {
            for stamp in &stamps {
                followed += usize::from(fan_outs.delivered(stamp, 1, now, &mut metrics).is_some());
            }
        }
        fan_outs.written(now, 0, &tracer, &mut metrics);
        assert_eq!(followed, 2 * MAX_FOLLOWED);
        assert_eq!(tracer.metrics().dropped.value(SpanLoss::TooMany as usize), 3);
    }
}
