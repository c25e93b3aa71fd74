//! Sampling of traces, and spans of the hub.
//!
//! A sampled publish becomes a `publish` span (kind producer). Each worker with subscribers adds a
//! `fan_out` span as its child. The first deliveries of the worker get `deliver` spans, which are
//! children of the `fan_out` span and linked to the publish. Deliveries of a publish that is not
//! sampled create no spans.
//!
//! The embedding program chooses where spans go: it puts a [`Tracer`] with a [`SpanSink`] into the
//! node's [`Config`](crate::Config). Sampled traces of clients are propagated even without a sink.

mod client_rate;
pub(crate) mod fan_out;
mod handshake;
mod message;
mod metrics;
mod sampler;
mod span;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use deeperhub_protocol::message::{SpanContext, TraceContext};

use client_rate::ClientRate;
pub(crate) use handshake::{HandshakeSpan, HandshakeTrace};
pub(crate) use message::{MESSAGING_SYSTEM, MessageSpan};
pub use metrics::{SpanLoss, TraceMetrics};
pub use sampler::Sampler;
pub use span::{Attribute, Span, SpanKind, Value};

/// Receiver of finished spans.
pub trait SpanSink: Send + Sync + std::fmt::Debug {
    /// Records a span of a sampled trace. Worker threads call this, so it must not block. If there
    /// is no room, an implementation drops the span and counts it in [`TraceMetrics`].
    fn record(&self, span: Span);
}

/// Sampler and sink of traces. Clones share the sink and the counters.
///
/// The default records no spans, and propagates sampled traces of clients.
#[derive(Debug, Clone, Default)]
pub struct Tracer {
    sampler: Sampler,
    sink: Option<Arc<dyn SpanSink>>,
    metrics: TraceMetrics,
    /// Limit on sampled traces of clients. `None` means no limit.
    client_rate: Option<Arc<ClientRate>>,
}

impl Tracer {
    /// Creates a tracer whose spans go to `sink`. The sink counts them in `metrics`.
    #[must_use]
    pub fn new(sampler: Sampler, sink: Arc<dyn SpanSink>, metrics: TraceMetrics) -> Self {
        Self { sampler, sink: Some(sink), metrics, client_rate: None }
    }

    /// Limits the messages and handshakes per second that are recorded because their clients marked
    /// the trace as sampled. Any client can do so, and the limit protects the sink. The burst is as
    /// large as the rate. With 0, all of them are over the limit.
    ///
    /// Messages and handshakes over the limit are sampled at random with the sampler's ratio, and
    /// not by trace ID, because clients also choose the ID. Traces of backends are never limited.
    /// Without this call there is no limit.
    #[must_use]
    pub fn with_client_rate(mut self, per_second: u32) -> Self {
        self.client_rate = Some(Arc::new(ClientRate::new(per_second, Instant::now())));
        self
    }

    pub(crate) const fn metrics(&self) -> &TraceMetrics {
        &self.metrics
    }

    /// Starts a span as a child of `parent`, or as the root of a new trace if there is no parent.
    /// Returns `None` if the trace is not sampled.
    #[inline]
    #[must_use]
    pub fn start(&self, parent: Option<SpanContext>) -> Option<ActiveSpan> {
        if parent.is_none() && self.sampler.never_starts_traces() {
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
            wall_start: SystemTime::now(),
        })
    }

    /// Starts a span like [`start`](Self::start), but for a message or handshake of a client,
    /// within the limit of [`with_client_rate`](Self::with_client_rate).
    #[inline]
    #[must_use]
    pub(crate) fn start_for_client(&self, parent: Option<SpanContext>) -> Option<ActiveSpan> {
        let span = self.start(parent)?;
        let (Some(rate), Some(_)) = (&self.client_rate, parent) else { return Some(span) };
        if rate.try_acquire(span.started) {
            return Some(span);
        }
        self.metrics.limited.inc();
        self.sampler.samples_by_chance().then_some(span)
    }

    /// Returns a parent for operations in a trace that is not recorded. The parent is no real span,
    /// so its IDs must not be sent to other programs.
    #[must_use]
    pub const fn declined() -> SpanContext {
        SpanContext::UNSAMPLED
    }

    /// Returns `true` if there is a sink. Without a sink, finished spans need not be created.
    #[must_use]
    pub const fn is_recording(&self) -> bool {
        self.sink.is_some()
    }

    /// Records a finished span. Calls `span` only if there is a sink.
    pub fn record(&self, span: impl FnOnce() -> Span) {
        if let Some(sink) = &self.sink {
            sink.record(span());
        }
    }
}

/// Sampled span in progress.
#[derive(Debug, Clone)]
pub struct ActiveSpan {
    context: SpanContext,
    parent: Option<SpanContext>,
    tracestate: Option<Arc<str>>,
    started: Instant,
    /// Wall-clock time at `started`.
    wall_start: SystemTime,
}

impl ActiveSpan {
    /// Adds the `tracestate` of the parent.
    #[must_use]
    pub fn with_tracestate(mut self, tracestate: Option<&str>) -> Self {
        self.tracestate = tracestate.map(Arc::from);
        self
    }

    /// Returns a log span. Log lines within it contain the IDs of the trace and of this span.
    #[must_use]
    pub fn log_span(&self) -> tracing::Span {
        let (trace_id, span_id) = (self.context.trace_id(), self.context.span_id());
        // The most severe level, so that no log level filters it out.
        tracing::error_span!(
            "trace",
            trace_id = %format_args!("{trace_id:032x}"),
            span_id = %format_args!("{span_id:016x}")
        )
    }

    /// Returns the IDs of the trace and of this span.
    #[must_use]
    pub const fn context(&self) -> SpanContext {
        self.context
    }

    /// Returns the `tracestate` of the trace.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// Returns the trace context that makes other spans children of this one.
    #[must_use]
    pub fn trace_context(&self) -> TraceContext<'_> {
        TraceContext {
            traceparent: Some(Cow::Owned(self.context.to_string())),
            tracestate: self.tracestate().map(Cow::Borrowed),
        }
    }

    /// Returns a span that was started elsewhere in this process, as the parent of others. Returns
    /// `None` if the context has none that is sampled.
    pub(crate) fn resumed(trace: &TraceContext<'_>, at: Instant) -> Option<Self> {
        let context = SpanContext::from_context(trace).filter(SpanContext::is_sampled)?;
        let tracestate = trace.tracestate.as_deref().map(Arc::from);
        Some(Self { context, parent: None, tracestate, started: at, wall_start: SystemTime::now() })
    }

    /// Starts a child of this span at `at`.
    pub(crate) fn child(&self, at: Instant) -> Option<Self> {
        Some(Self {
            context: SpanContext::new(self.context.trace_id(), sampler::span_id(), true)?,
            parent: Some(self.context),
            tracestate: self.tracestate.clone(),
            started: at,
            wall_start: self.wall_at(at),
        })
    }

    /// Moves the start to `at`.
    #[must_use]
    pub fn with_start_time(mut self, at: Instant) -> Self {
        self.wall_start = self.wall_at(at);
        self.started = at;
        self
    }

    /// Returns the wall-clock time of `at`, computed from the monotonic clock. Steps of the wall
    /// clock since the start have no effect.
    fn wall_at(&self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.started) {
            Some(later) => self.wall_start + later,
            None => self.wall_start.checked_sub(self.started.duration_since(at)).unwrap_or(self.wall_start),
        }
    }

    /// Ends the span at `at`. Its parent counts as remote, unless
    /// [`with_local_parent`](Span::with_local_parent) is called.
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
            start: self.wall_start,
            end: end.max(self.wall_start),
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
    struct CollectingSink(Mutex<Vec<Span>>);

    impl SpanSink for CollectingSink {
        fn record(&self, span: Span) {
            self.0.lock().unwrap().push(span);
        }
    }

    fn parent(sampled: bool) -> Option<SpanContext> {
        SpanContext::new(7, 8, sampled)
    }

    #[test]
    fn without_a_sink_only_sampled_parents_start_spans() {
        let tracer = Tracer::default();
        assert!(tracer.start(None).is_none() && tracer.start(parent(false)).is_none());
        let span = tracer.start(parent(true)).unwrap();
        assert_eq!((span.context().trace_id(), span.context().is_sampled()), (7, true));
        assert_ne!(span.context().span_id(), 8);
        assert!(!tracer.is_recording());
    }

    fn limited(ratio: f64, per_second: u32) -> Tracer {
        let sink: Arc<dyn SpanSink> = Arc::new(CollectingSink::default());
        Tracer::new(Sampler::parent_based(ratio), sink, TraceMetrics::default()).with_client_rate(per_second)
    }

    #[test]
    fn client_traces_are_limited_to_rate_and_ratio() {
        let recorded =
            |tracer: &Tracer| (0..1000).filter(|_| tracer.start_for_client(parent(true)).is_some()).count();
        let tracer = limited(0.0, 10);
        assert!((10..50).contains(&recorded(&tracer)));
        assert!((950..=990).contains(&tracer.metrics().limited.value()));
        assert!((0..1000).all(|_| tracer.start(parent(true)).is_some()), "traces of servers are not limited");
        assert_eq!(recorded(&limited(0.0, 0)), 0);
        // Trace IDs that clients choose make no difference.
        assert!((50..200).contains(&recorded(&limited(0.1, 0))));
        assert_eq!(recorded(&limited(1.0, 0)), 1000);
    }

    #[test]
    fn unsampled_client_traces_are_not_limited() {
        let tracer = limited(1.0, 0);
        assert!(tracer.start_for_client(parent(false)).is_none());
        assert!(tracer.start_for_client(None).is_some());
        assert_eq!(tracer.metrics().limited.value(), 0);
    }

    #[test]
    fn a_span_has_its_times_and_its_parent() {
        let collected = Arc::new(CollectingSink::default());
        let sink: Arc<dyn SpanSink> = collected.clone();
        let tracer = Tracer::new(Sampler::parent_based(1.0), sink, TraceMetrics::default());
        let span = tracer.start(parent(true)).unwrap().with_tracestate(Some("a=1"));
        let began = span.started;
        let child = span.child(began + Duration::from_millis(5)).unwrap();
        tracer.record(|| child.end(began + Duration::from_millis(9), "fan_out", SpanKind::Internal));
        tracer.record(|| span.clone().end(began + Duration::from_millis(2), "publish", SpanKind::Producer));
        let spans = collected.0.lock().unwrap();
        assert_eq!(spans[0].end.duration_since(spans[0].start).unwrap(), Duration::from_millis(4));
        assert_eq!(spans[0].start.duration_since(spans[1].start).unwrap(), Duration::from_millis(5));
        assert_eq!(spans[0].parent, Some(span.context()));
        assert_eq!(spans[1].parent, parent(true));
        assert_eq!(spans[0].tracestate.as_deref(), Some("a=1"));
    }

    #[test]
    fn a_span_can_start_before_it_was_created() {
        let tracer = Tracer::default();
        let span = tracer.start(parent(true)).unwrap();
        let (now, wall) = (span.started, span.wall_start);
        let Some(earlier) = now.checked_sub(Duration::from_millis(3)) else { return };
        let span = span.with_start_time(earlier).end(now, "GET /ws", SpanKind::Server);
        assert_eq!(wall.duration_since(span.start).unwrap(), Duration::from_millis(3));
        assert_eq!(span.end, wall);
    }
}
