//! Traces across the hub: which are recorded, and the spans that are made of them.
//!
//! A publish in a sampled trace becomes a span `publish` (a producer's), for each worker with subscribers a span
//! `fan_out` below it, and below that for its first deliveries spans `deliver`, each linked to the publish. Nothing of
//! it is made, or decided, for a delivery of a publish that is not sampled.
//!
//! Where spans go is the embedding program's affair: it gives a [`Tracer`] with a [`SpanSink`] to the node's
//! [`Config`](crate::Config). Without a sink, traces that clients bring are carried on all the same.

mod client_rate;
pub(crate) mod fan_out;
mod handshake;
mod message;
mod sampler;
mod span;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use deeperhub_metrics::{RegisterError, Registry, SharedCounter, SharedCounterVec, Unit};
use deeperhub_protocol::message::{SpanContext, TraceContext};

use client_rate::ClientRate;
pub(crate) use handshake::{HandshakeSpan, HandshakeTrace};
pub(crate) use message::MessageSpan;
pub use sampler::Sampler;
pub use span::{Attribute, Span, SpanKind, Value};

/// Takes finished spans.
pub trait SpanSink: Send + Sync + std::fmt::Debug {
    /// Takes a span of a sampled trace, on the thread of a worker: must not wait. What there is no room for is dropped,
    /// and counted in [`TraceMetrics`].
    fn record(&self, span: Span);
}

/// Why spans are lost, in the order of [`TraceMetrics::dropped`].
const REASONS: &[&str] = &["queue_full", "export_failed", "rejected", "too_many"];

/// Why spans are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanLoss {
    /// The exporter was behind.
    QueueFull,
    /// The collector could not be reached, or refused the batch.
    ExportFailed,
    /// The collector took the batch, but not these.
    Rejected,
    /// A worker followed too many sampled publishes to follow one more. Its `fan_out` span, with
    /// those below it, counts once.
    TooMany,
}

/// What a sink counts. Cheap to clone; clones are the same counters.
#[derive(Debug, Clone)]
pub struct TraceMetrics {
    exported: SharedCounter,
    dropped: SharedCounterVec,
    limited: SharedCounter,
}

impl Default for TraceMetrics {
    fn default() -> Self {
        Self {
            exported: SharedCounter::new(),
            dropped: SharedCounterVec::new("reason", REASONS),
            limited: SharedCounter::new(),
        }
    }
}

impl TraceMetrics {
    /// Counts spans that a collector has taken.
    pub fn exported(&self, spans: u64) {
        self.exported.add(spans);
    }

    /// Counts spans that are lost.
    pub fn dropped(&self, loss: SpanLoss, spans: u64) {
        self.dropped.add(loss as usize, spans);
    }

    pub(crate) fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        let none = Unit::None;
        registry.register(
            "deeperhub_trace_spans_exported_total",
            "Spans that a collector has taken",
            none,
            &self.exported,
        )?;
        registry.register(
            "deeperhub_trace_spans_dropped_total",
            "Spans that were lost",
            none,
            &self.dropped,
        )?;
        registry.register(
            "deeperhub_trace_clients_limited_total",
            "Messages and handshakes in sampled traces of clients that were over the rate of these",
            none,
            &self.limited,
        )
    }
}

/// Decides which traces are recorded, and hands their spans on. Cheap to clone.
///
/// The default records nothing and carries on what clients bring sampled.
#[derive(Debug, Clone, Default)]
pub struct Tracer {
    sampler: Sampler,
    sink: Option<Arc<dyn SpanSink>>,
    metrics: TraceMetrics,
    /// `None`: all traces that clients bring are followed.
    client_rate: Option<Arc<ClientRate>>,
}

impl Tracer {
    /// A tracer whose spans go to `sink`, which counts in `metrics`.
    #[must_use]
    pub fn new(sampler: Sampler, sink: Arc<dyn SpanSink>, metrics: TraceMetrics) -> Self {
        Self { sampler, sink: Some(sink), metrics, client_rate: None }
    }

    /// Limits how many messages and handshakes per second are recorded because their clients marked
    /// the trace as sampled, which anyone can do. Those over the limit are recorded with the
    /// sampler's ratio. That is by chance and not by trace id, which clients choose too. With 0, it
    /// applies to all of them. The burst is one second's worth.
    ///
    /// Without this call there is no such limit. Traces that servers bring are never limited.
    #[must_use]
    pub fn with_client_rate(mut self, per_second: u32) -> Self {
        self.client_rate = Some(Arc::new(ClientRate::new(per_second, Instant::now())));
        self
    }

    pub(crate) const fn metrics(&self) -> &TraceMetrics {
        &self.metrics
    }

    /// Begins a span below `parent`, or a trace where there is none. `None`: it is not sampled.
    #[inline]
    #[must_use]
    pub fn start(&self, parent: Option<SpanContext>) -> Option<ActiveSpan> {
        if parent.is_none() && self.sampler.never_begins() {
            return None;
        }
        let (trace_id, sampled) = self.sampler.decide(parent);
        if !sampled {
            return None;
        }
        Some(ActiveSpan {
            context: SpanContext::new(trace_id, sampler::span_id(), true)?,
            parent,
            tracestate: None,
            started: Instant::now(),
            wall: SystemTime::now(),
        })
    }

    /// Starts a span like [`start`](Self::start), for something that a client sent.
    #[inline]
    #[must_use]
    pub(crate) fn start_for_client(&self, parent: Option<SpanContext>) -> Option<ActiveSpan> {
        let span = self.start(parent)?;
        let (Some(rate), Some(_)) = (&self.client_rate, parent) else { return Some(span) };
        if rate.take(span.started) {
            return Some(span);
        }
        self.metrics.limited.inc();
        self.sampler.draws().then_some(span)
    }

    /// The parent of what belongs to a trace that was decided not to be recorded. It names no real span: not to be sent
    /// to others.
    #[must_use]
    pub const fn declined() -> SpanContext {
        SpanContext::UNSAMPLED
    }

    /// Whether spans are recorded anywhere: without that none need be made.
    #[must_use]
    pub const fn records(&self) -> bool {
        self.sink.is_some()
    }

    /// Hands a finished span on.
    pub fn record(&self, span: impl FnOnce() -> Span) {
        if let Some(sink) = &self.sink {
            sink.record(span());
        }
    }
}

/// A sampled span that has begun.
#[derive(Debug, Clone)]
pub struct ActiveSpan {
    context: SpanContext,
    parent: Option<SpanContext>,
    tracestate: Option<Arc<str>>,
    started: Instant,
    wall: SystemTime,
}

impl ActiveSpan {
    /// Lets the span carry the `tracestate` that came with its parent.
    #[must_use]
    pub fn with_tracestate(mut self, tracestate: Option<&str>) -> Self {
        self.tracestate = tracestate.map(Arc::from);
        self
    }

    /// A span of the log, whose lines then name the trace.
    #[must_use]
    pub fn for_log(&self) -> tracing::Span {
        let (trace_id, span_id) = (self.context.trace_id(), self.context.span_id());
        // Of the gravest level, so that no level of the log leaves it out.
        tracing::error_span!(
            "trace",
            trace_id = %format_args!("{trace_id:032x}"),
            span_id = %format_args!("{span_id:016x}")
        )
    }

    /// Its own ids.
    #[must_use]
    pub const fn context(&self) -> SpanContext {
        self.context
    }

    /// The `tracestate` of its trace.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// What puts others below this span.
    #[must_use]
    pub fn trace_context(&self) -> TraceContext<'_> {
        TraceContext {
            traceparent: Some(Cow::Owned(self.context.to_string())),
            tracestate: self.tracestate().map(Cow::Borrowed),
        }
    }

    /// A span below this one, of the same trace, that began at `at`.
    pub(crate) fn child(&self, at: Instant) -> Option<Self> {
        Some(Self {
            context: SpanContext::new(self.context.trace_id(), sampler::span_id(), true)?,
            parent: Some(self.context),
            tracestate: self.tracestate.clone(),
            started: at,
            wall: self.wall_at(at),
        })
    }

    /// Lets the span have begun earlier than it was made.
    #[must_use]
    pub fn since(mut self, at: Instant) -> Self {
        self.wall = self.wall_at(at);
        self.started = at;
        self
    }

    /// The wall clock at `at`, by how far that is from the start: steps of the clock meanwhile do not show.
    fn wall_at(&self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.started) {
            Some(later) => self.wall + later,
            None => self.wall.checked_sub(self.started.duration_since(at)).unwrap_or(self.wall),
        }
    }

    /// The span as it ends at `at`. Its parent is another program's unless it is said to be ours.
    #[must_use]
    pub fn end(self, at: Instant, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Span {
        let end = self.wall_at(at);
        Span {
            name: name.into(),
            kind,
            context: self.context,
            parent: self.parent,
            parent_is_remote: true,
            tracestate: self.tracestate,
            start: self.wall,
            end: end.max(self.wall),
            attributes: Vec::new(),
            links: Vec::new(),
            error: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Duration;

    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<Span>>);

    impl SpanSink for Kept {
        fn record(&self, span: Span) {
            self.0.lock().unwrap().push(span);
        }
    }

    fn parent(sampled: bool) -> Option<SpanContext> {
        SpanContext::new(7, 8, sampled)
    }

    #[test]
    fn without_a_sink_only_sampled_parents_are_carried_on() {
        let tracer = Tracer::default();
        assert!(tracer.start(None).is_none() && tracer.start(parent(false)).is_none());
        let span = tracer.start(parent(true)).unwrap();
        assert_eq!((span.context().trace_id(), span.context().is_sampled()), (7, true));
        assert_ne!(span.context().span_id(), 8);
        assert!(!tracer.records());
    }

    fn limited(ratio: f64, per_second: u32) -> Tracer {
        let sink: Arc<dyn SpanSink> = Arc::new(Kept::default());
        Tracer::new(Sampler::parent_based(ratio), sink, TraceMetrics::default()).with_client_rate(per_second)
    }

    #[test]
    fn clients_cannot_have_more_traces_recorded_than_the_rate_and_the_ratio_allow() {
        let recorded =
            |tracer: &Tracer| (0..1000).filter(|_| tracer.start_for_client(parent(true)).is_some()).count();
        let tracer = limited(0.0, 10);
        assert!((10..50).contains(&recorded(&tracer)));
        assert!((950..=990).contains(&tracer.metrics().limited.value()));
        assert!((0..1000).all(|_| tracer.start(parent(true)).is_some()), "servers are believed");
        assert_eq!(recorded(&limited(0.0, 0)), 0);
        // Trace ids that clients choose do not help.
        assert!((50..200).contains(&recorded(&limited(0.1, 0))));
        assert_eq!(recorded(&limited(1.0, 0)), 1000);
    }

    #[test]
    fn what_clients_do_not_sample_is_not_limited() {
        let tracer = limited(1.0, 0);
        assert!(tracer.start_for_client(parent(false)).is_none());
        assert!(tracer.start_for_client(None).is_some());
        assert_eq!(tracer.metrics().limited.value(), 0);
    }

    #[test]
    fn a_span_ends_after_it_began_and_knows_its_parent() {
        let kept = Arc::new(Kept::default());
        let sink: Arc<dyn SpanSink> = kept.clone();
        let tracer = Tracer::new(Sampler::parent_based(1.0), sink, TraceMetrics::default());
        let span = tracer.start(parent(true)).unwrap().with_tracestate(Some("a=1"));
        let began = span.started;
        let child = span.child(began + Duration::from_millis(5)).unwrap();
        tracer.record(|| child.end(began + Duration::from_millis(9), "fan_out", SpanKind::Internal));
        tracer.record(|| span.clone().end(began + Duration::from_millis(2), "publish", SpanKind::Producer));
        let spans = kept.0.lock().unwrap();
        assert_eq!(spans[0].end.duration_since(spans[0].start).unwrap(), Duration::from_millis(4));
        assert_eq!(spans[0].start.duration_since(spans[1].start).unwrap(), Duration::from_millis(5));
        assert_eq!(spans[0].parent, Some(span.context()));
        assert_eq!(spans[1].parent, parent(true));
        assert_eq!(spans[0].tracestate.as_deref(), Some("a=1"));
    }

    #[test]
    fn a_span_may_have_begun_earlier_than_it_was_made() {
        let tracer = Tracer::default();
        let span = tracer.start(parent(true)).unwrap();
        let (now, wall) = (span.started, span.wall);
        let Some(earlier) = now.checked_sub(Duration::from_millis(3)) else { return };
        let span = span.since(earlier).end(now, "GET /ws", SpanKind::Server);
        assert_eq!(wall.duration_since(span.start).unwrap(), Duration::from_millis(3));
        assert_eq!(span.end, wall);
    }
}
