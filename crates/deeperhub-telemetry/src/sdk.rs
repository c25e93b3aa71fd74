//! Hands spans to the span processors and exporters of OpenTelemetry's SDK.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use deeperhub_node::trace::{Sampler, Span, SpanKind, SpanLoss, SpanSink, TraceMetrics, Tracer, Value};
use deeperhub_protocol::message::SpanContext;
use opentelemetry::trace::{Link, SpanId, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanLinks, SpanProcessor};
use tokio::sync::watch;
use tracing::error;

use crate::otlp::SCOPE_NAME;
use crate::queue::{BatchQueue, Pushed};

/// Maximum number of spans in the queue; spans over it are dropped and counted.
const MAX_QUEUED_SPANS: usize = 2048;

/// Number of queued spans at which the thread is woken before its delay ends.
const BATCH_SPANS: usize = 512;

/// Longest time that a span waits in the queue while the processor keeps up.
const BATCH_DELAY: Duration = Duration::from_millis(200);

/// Limits the shutdown of the processor when the sink is dropped without [`SdkSpanSink::stop`].
const DROP_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Sink that hands a node's spans to a span processor of OpenTelemetry's SDK.
///
/// The processor runs on a thread of the sink, so it may block (as `SimpleSpanProcessor` does).
/// Threads that serve clients only push to a bounded queue of 2048 spans. If the queue is full,
/// spans are dropped and counted in `deeperhub_trace_spans_dropped_total`. The SDK does not report
/// whether a span was exported, so `deeperhub_trace_spans_exported_total` counts the spans that the
/// processor received.
///
/// Each span carries ids, parent, `tracestate`, kind, times, attributes, links and status. The hub
/// records no span events. A `tracestate` that the SDK's parser refuses is left out.
///
/// Clones share one queue and one processor. The node's tracer has a clone, too. When the last
/// clone is dropped, the thread hands over the queued spans and shuts the processor down.
#[derive(Debug, Clone)]
pub struct SdkSpanSink {
    handle: Arc<Handle>,
}

/// Error of [`SdkSpanSink::stop`]: the processor did not shut down, so spans may be lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SdkStopError {
    /// The processor did not shut down in time. Its thread continues to run.
    #[error("the span processor did not shut down within {0:?}")]
    TimedOut(Duration),
    /// The processor reported an error, or its thread panicked.
    #[error("the span processor failed to shut down: {0}")]
    Failed(String),
}

/// State that the sink shares with its thread.
#[derive(Debug)]
struct Shared {
    queue: BatchQueue<Span>,
    metrics: TraceMetrics,
    is_stopping: AtomicBool,
    shutdown_timeout: Mutex<Duration>,
}

/// Stops the thread when the last clone of the sink is dropped.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    thread: Thread,
    /// The result of the processor's shutdown; `None` while the thread runs.
    result: watch::Receiver<Option<Result<(), String>>>,
}

impl SdkSpanSink {
    /// Starts a thread for `processor`, whose exporter gets `resource`.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn new(mut processor: impl SpanProcessor + 'static, resource: &Resource) -> io::Result<Self> {
        processor.set_resource(resource);
        let shared = Arc::new(Shared {
            queue: BatchQueue::new(MAX_QUEUED_SPANS, BATCH_SPANS),
            metrics: TraceMetrics::default(),
            is_stopping: AtomicBool::new(false),
            shutdown_timeout: Mutex::new(DROP_SHUTDOWN_TIMEOUT),
        });
        let (result_sender, result) = watch::channel(None);
        let thread = thread::Builder::new().name("span-processor".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let result = shared.run(&processor);
                result_sender.send_replace(Some(result.map_err(|error| error.to_string())));
            }
        })?;
        let thread = thread.thread().clone();
        Ok(Self { handle: Arc::new(Handle { shared, thread, result }) })
    }

    /// Returns a tracer for the node's configuration. It records the traces that `sampler` selects.
    #[must_use]
    pub fn tracer(&self, sampler: Sampler) -> Tracer {
        Tracer::new(sampler, Arc::new(self.clone()), self.handle.shared.metrics.clone())
    }

    /// Hands over the queued spans and shuts the processor down. Waits at most `timeout`.
    ///
    /// Call it after the node has stopped, because spans that are recorded later are dropped and
    /// counted.
    ///
    /// # Errors
    ///
    /// If the processor fails to shut down, or does not shut down in time.
    pub async fn stop(&self, timeout: Duration) -> Result<(), SdkStopError> {
        *self.handle.shared.shutdown_timeout.lock().unwrap_or_else(PoisonError::into_inner) = timeout;
        self.handle.stop();
        let mut result = self.handle.result.clone();
        match tokio::time::timeout(timeout, result.wait_for(Option::is_some)).await {
            Err(_) => Err(SdkStopError::TimedOut(timeout)),
            Ok(Ok(result)) => match &*result {
                Some(Err(error)) => Err(SdkStopError::Failed(error.clone())),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(SdkStopError::Failed("its thread panicked".to_owned())),
        }
    }
}

impl SpanSink for SdkSpanSink {
    fn record(&self, span: Span) {
        let shared = &self.handle.shared;
        if shared.is_stopping.load(Ordering::Relaxed) {
            shared.metrics.dropped(SpanLoss::ExportFailed, 1);
            return;
        }
        match shared.queue.push(span) {
            Pushed::Queued => {}
            Pushed::CompletesBatch => self.handle.thread.unpark(),
            Pushed::Full => shared.metrics.dropped(SpanLoss::QueueFull, 1),
        }
    }
}

impl Handle {
    /// Asks the thread to hand over the queued spans and end.
    fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Hands spans to the processor until the sink stops, and then shuts the processor down.
    fn run(&self, processor: &impl SpanProcessor) -> OTelSdkResult {
        let scope = InstrumentationScope::builder(SCOPE_NAME).with_version(env!("CARGO_PKG_VERSION")).build();
        loop {
            // The flag is read before the queue, so that spans recorded before the stop are handed
            // over.
            let is_stopping = self.is_stopping.load(Ordering::Acquire);
            let batch = self.queue.take_batch();
            if batch.is_empty() {
                if is_stopping {
                    break;
                }
                thread::park_timeout(BATCH_DELAY);
            }
            for span in batch {
                self.hand_over(processor, span_data(span, &scope));
            }
        }
        let timeout = *self.shutdown_timeout.lock().unwrap_or_else(PoisonError::into_inner);
        processor.shutdown_with_timeout(timeout)
    }

    /// Hands a span to the processor. If the processor panics, counts the span as dropped.
    fn hand_over(&self, processor: &impl SpanProcessor, span: SpanData) {
        match catch_unwind(AssertUnwindSafe(|| processor.on_end(span))) {
            Ok(()) => self.metrics.exported(1),
            Err(_) => {
                error!("Span processor panicked");
                self.metrics.dropped(SpanLoss::ExportFailed, 1);
            }
        }
    }
}

/// Converts a span to the SDK's form.
fn span_data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let status = match &span.error {
        Some(_) => Status::error(""),
        None => Status::Unset,
    };
    let mut attributes: Vec<_> =
        span.attributes.into_iter().map(|(name, value)| KeyValue::new(name, sdk_value(value))).collect();
    attributes.extend(span.error.map(|error| KeyValue::new("error.type", error)));
    let mut links = SpanLinks::default();
    links.links =
        span.links.into_iter().map(|linked| Link::with_context(sdk_context(linked, None))).collect();
    SpanData {
        span_context: sdk_context(span.context, span.tracestate.as_deref()),
        parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.span_id())),
        parent_span_is_remote: span.parent.is_some() && span.parent_is_remote,
        span_kind: match span.kind {
            SpanKind::Server => opentelemetry::trace::SpanKind::Server,
            SpanKind::Client => opentelemetry::trace::SpanKind::Client,
            SpanKind::Producer => opentelemetry::trace::SpanKind::Producer,
            SpanKind::Consumer => opentelemetry::trace::SpanKind::Consumer,
            _ => opentelemetry::trace::SpanKind::Internal,
        },
        name: span.name,
        start_time: span.start,
        end_time: span.end,
        attributes,
        dropped_attributes_count: 0,
        events: opentelemetry_sdk::trace::SpanEvents::default(),
        links,
        status,
        instrumentation_scope: scope.clone(),
    }
}

/// Converts the ids and flags of a span. Sets `is_remote` to `false`: a recorded span is never
/// remote, and the hub does not know whether a linked span is.
fn sdk_context(context: SpanContext, tracestate: Option<&str>) -> opentelemetry::trace::SpanContext {
    let flags = if context.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let state = tracestate.and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    opentelemetry::trace::SpanContext::new(
        TraceId::from(context.trace_id()),
        SpanId::from(context.span_id()),
        flags,
        false,
        state,
    )
}

fn sdk_value(value: Value) -> opentelemetry::Value {
    match value {
        Value::Text(text) => opentelemetry::Value::from(text),
        Value::Integer(number) => opentelemetry::Value::I64(number),
        Value::Float(number) => opentelemetry::Value::F64(number),
        Value::Flag(flag) => opentelemetry::Value::Bool(flag),
        _ => opentelemetry::Value::from(""),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use deeperhub_node::trace::ActiveSpan;
    use opentelemetry::Context;
    use opentelemetry_proto::tonic::trace::v1 as trace;

    use super::*;
    use crate::otlp::otlp_span;

    /// Stores the spans and the resource. Blocks in `on_end` while `gate` is locked.
    #[derive(Debug, Default, Clone)]
    struct TestProcessor {
        spans: Arc<Mutex<Vec<SpanData>>>,
        gate: Arc<Mutex<()>>,
        resource: Option<Resource>,
        shut_down: Arc<AtomicBool>,
    }

    impl SpanProcessor for TestProcessor {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            drop(self.gate.lock().unwrap());
            assert_ne!(span.name, "panic", "asked to panic");
            let service = self.resource.as_ref().unwrap().get(&"service.name".into());
            assert_eq!(service, Some("my-hub".into()));
            self.spans.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            self.shut_down.store(true, Ordering::Relaxed);
            Ok(())
        }

        fn set_resource(&mut self, resource: &Resource) {
            self.resource = Some(resource.clone());
        }
    }

    fn resource() -> Resource {
        Resource::builder_empty().with_service_name("my-hub").build()
    }

    fn active(parent: Option<SpanContext>, tracestate: Option<&str>) -> ActiveSpan {
        Tracer::default().start(parent.or(SpanContext::new(7, 8, true))).unwrap().with_tracestate(tracestate)
    }

    fn span(name: &'static str) -> Span {
        active(None, None).end(Instant::now(), name, SpanKind::Internal)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    /// Removes differences without meaning. Adds an absent status as unset, and clears the flags
    /// that say whether a link is remote, because only the SDK sets them.
    fn normalized(mut span: trace::Span) -> trace::Span {
        span.status.get_or_insert_default();
        for link in &mut span.links {
            link.flags &= 0xff;
        }
        span
    }

    #[test]
    fn both_conversions_yield_the_same_otlp_span() {
        let scope = InstrumentationScope::builder(SCOPE_NAME).build();
        let linked = SpanContext::new(u128::MAX - 1, 0xfeed, false);
        let remote = SpanContext::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa, true);
        let full = |kind| {
            active(remote, Some("vendor=1,other=a b"))
                .end(Instant::now() + Duration::from_millis(3), "publish", kind)
                .with("text", "value")
                .with("owned", "value".to_owned())
                .with("number", i64::MIN)
                .with("share", 0.25)
                .with("flag", true)
                .with_link(linked)
                .with_link(remote)
        };
        let kinds =
            [SpanKind::Internal, SpanKind::Server, SpanKind::Client, SpanKind::Producer, SpanKind::Consumer];
        let mut spans: Vec<_> = kinds.into_iter().map(full).collect();
        spans.push(full(SpanKind::Server).with_error(Some("forbidden")));
        spans.push(full(SpanKind::Server).with_local_parent());
        spans.push(span("without tracestate"));
        let mut root = span("root");
        root.parent = None;
        spans.push(root);
        for span in spans {
            let ours = normalized(otlp_span(span.clone()));
            let through_sdk = normalized(trace::Span::from(span_data(span, &scope)));
            assert!(!ours.trace_id.is_empty() && ours.end_time_unix_nano >= ours.start_time_unix_nano);
            // The fields are compared one by one, so that a failure names the field.
            assert_eq!(ours.trace_id, through_sdk.trace_id);
            assert_eq!(ours.span_id, through_sdk.span_id);
            assert_eq!(ours.trace_state, through_sdk.trace_state);
            assert_eq!(ours.parent_span_id, through_sdk.parent_span_id);
            assert_eq!(ours.flags, through_sdk.flags);
            assert_eq!(ours.name, through_sdk.name);
            assert_eq!(ours.kind, through_sdk.kind);
            assert_eq!(ours.start_time_unix_nano, through_sdk.start_time_unix_nano);
            assert_eq!(ours.end_time_unix_nano, through_sdk.end_time_unix_nano);
            assert_eq!(ours.attributes, through_sdk.attributes);
            assert_eq!(ours.events, through_sdk.events);
            assert_eq!(ours.links, through_sdk.links);
            assert_eq!(ours.status, through_sdk.status);
            assert_eq!(ours, through_sdk);
        }
    }

    #[test]
    fn an_invalid_tracestate_is_left_out() {
        let scope = InstrumentationScope::builder(SCOPE_NAME).build();
        let span = active(None, Some("no list member")).end(Instant::now(), "a", SpanKind::Internal);
        assert_eq!(span_data(span, &scope).span_context.trace_state().header(), "");
    }

    #[test]
    fn stop_hands_over_all_spans_and_shuts_the_processor_down() {
        let processor = TestProcessor::default();
        let sink = SdkSpanSink::new(processor.clone(), &resource()).unwrap();
        for _ in 0..BATCH_SPANS + 1 {
            sink.record(span("a"));
        }
        runtime().block_on(sink.stop(Duration::from_secs(60))).unwrap();
        sink.record(span("late"));
        let spans = processor.spans.lock().unwrap();
        assert_eq!(spans.len(), BATCH_SPANS + 1);
        assert_eq!(spans[0].instrumentation_scope.name(), SCOPE_NAME);
        assert_eq!(spans[0].instrumentation_scope.version(), Some(env!("CARGO_PKG_VERSION")));
        assert!(processor.shut_down.load(Ordering::Relaxed));
    }

    #[test]
    fn a_processor_that_blocks_delays_neither_recorders_nor_the_stop() {
        let processor = TestProcessor::default();
        let sink = SdkSpanSink::new(processor.clone(), &resource()).unwrap();
        let gate = processor.gate.lock().unwrap();
        for _ in 0..4 * MAX_QUEUED_SPANS {
            sink.record(span("a"));
        }
        let stopped = runtime().block_on(sink.stop(Duration::from_millis(50)));
        assert!(matches!(stopped, Err(SdkStopError::TimedOut(_))), "{stopped:?}");
        drop(gate);
        runtime().block_on(sink.stop(Duration::from_secs(60))).unwrap();
        let count = processor.spans.lock().unwrap().len();
        // The thread took one batch before it blocked; the queue held at most its capacity.
        assert!((MAX_QUEUED_SPANS..=MAX_QUEUED_SPANS + BATCH_SPANS).contains(&count), "{count}");
    }

    #[test]
    fn a_panic_of_the_processor_costs_one_span() {
        let processor = TestProcessor::default();
        let sink = SdkSpanSink::new(processor.clone(), &resource()).unwrap();
        for name in ["a", "panic", "b"] {
            sink.record(span(name));
        }
        runtime().block_on(sink.stop(Duration::from_secs(60))).unwrap();
        let names: Vec<_> = processor.spans.lock().unwrap().iter().map(|span| span.name.clone()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn dropping_the_tracer_and_the_sink_ends_the_thread() {
        let (dropped, ended) = mpsc::channel::<()>();
        #[derive(Debug)]
        struct Signals(TestProcessor, #[allow(dead_code)] mpsc::Sender<()>);
        impl SpanProcessor for Signals {
            fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}
            fn on_end(&self, span: SpanData) {
                self.0.on_end(span);
            }
            fn force_flush(&self) -> OTelSdkResult {
                Ok(())
            }
            fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
                self.0.shutdown_with_timeout(timeout)
            }
            fn set_resource(&mut self, resource: &Resource) {
                self.0.set_resource(resource);
            }
        }
        let processor = TestProcessor::default();
        let sink = SdkSpanSink::new(Signals(processor.clone(), dropped), &resource()).unwrap();
        let tracer = sink.tracer(Sampler::by_trace_id(1.0));
        drop(sink);
        tracer.record(|| span("a"));
        drop(tracer);
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
        assert_eq!(processor.spans.lock().unwrap().len(), 1);
        assert!(processor.shut_down.load(Ordering::Relaxed));
    }
}
