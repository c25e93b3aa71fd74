//! OpenTelemetry collector that accepts OTLP over gRPC or HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::wait_for;

/// A collector that accepts OTLP over gRPC or HTTP and stores what it receives.
#[derive(Debug)]
pub(crate) struct Collector {
    /// The address that it listens on.
    pub(crate) address: SocketAddr,
    received: Arc<Received>,
    task: JoinHandle<()>,
}

/// The data received so far.
#[derive(Debug)]
struct Received {
    all: Mutex<ReceivedData>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct ReceivedData {
    spans: Vec<ReceivedSpan>,
    metrics: Vec<Metric>,
    resource: BTreeMap<String, String>,
    /// Headers, or gRPC metadata, of the last request.
    headers: BTreeMap<String, String>,
    /// HTTP status of each response, or gRPC's `UNAVAILABLE`, while set.
    refusal: Option<u16>,
    /// Value of `Retry-After` in refusals over HTTP.
    retry_after: Option<String>,
    refused: u64,
    /// Number of spans that each response reports as rejected.
    rejected: i64,
}

/// A received span with its main fields decoded.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedSpan {
    /// The span's name.
    pub(crate) name: String,
    /// In the form of `traceparent`.
    pub(crate) trace_id: String,
    /// In the form of `traceparent`.
    pub(crate) span_id: String,
    /// In the form of `traceparent`; empty for a root.
    pub(crate) parent_id: String,
    /// Attributes by name; numbers as text.
    pub(crate) attributes: BTreeMap<String, String>,
    /// The whole span.
    pub(crate) span: Span,
}

impl Collector {
    /// Starts a collector for OTLP over gRPC.
    pub(crate) async fn grpc() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        Self::grpc_on(listener)
    }

    /// Starts a collector for OTLP over gRPC on an existing listener.
    pub(crate) fn grpc_on(listener: TcpListener) -> Self {
        let (address, received) = (listener.local_addr().expect("it listens"), Received::new());
        let service = Grpc(Arc::clone(&received));
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let task = tokio::spawn(async move {
            let served = tonic::transport::Server::builder()
                .add_service(
                    TraceServiceServer::new(service.clone())
                        .accept_compressed(tonic::codec::CompressionEncoding::Gzip),
                )
                .add_service(MetricsServiceServer::new(service))
                .serve_with_incoming(incoming);
            served.await.expect("the collector serves");
        });
        Self { address, received, task }
    }

    /// Starts a collector for OTLP over HTTP as protobuf.
    pub(crate) async fn http() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        Self::http_on(listener)
    }

    /// Starts a collector for OTLP over HTTP on an existing listener.
    pub(crate) fn http_on(listener: TcpListener) -> Self {
        let (address, received) = (listener.local_addr().expect("it listens"), Received::new());
        let router = Router::new()
            .route("/v1/traces", post(http_traces))
            .route("/v1/metrics", post(http_metrics))
            .with_state(Arc::clone(&received));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("the collector serves");
        });
        Self { address, received, task }
    }

    /// Returns the URL for `--otlp-endpoint`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Refuses requests with this HTTP status (`UNAVAILABLE` over gRPC), or accepts them again.
    pub(crate) fn refuse(&self, status: Option<u16>) {
        self.received.all.lock().unwrap().refusal = status;
    }

    /// Sends `Retry-After` with each refusal over HTTP.
    pub(crate) fn retry_after(&self, text: &str) {
        self.received.all.lock().unwrap().retry_after = Some(text.to_owned());
    }

    /// Reports this many spans of each request as rejected.
    pub(crate) fn reject(&self, spans: i64) {
        self.received.all.lock().unwrap().rejected = spans;
    }

    /// Waits until this many requests were refused.
    pub(crate) async fn wait_for_refusals(&self, count: u64) {
        self.wait("refusals", |all| (all.refused >= count).then_some(())).await;
    }

    /// Waits for a span that `fits` accepts.
    pub(crate) async fn span(&self, what: &str, fits: impl Fn(&ReceivedSpan) -> bool) -> ReceivedSpan {
        self.wait(what, |all| all.spans.iter().find(|span| fits(span)).cloned()).await
    }

    /// Waits for `count` spans that `fits` accepts.
    pub(crate) async fn spans(
        &self,
        count: usize,
        fits: impl Fn(&ReceivedSpan) -> bool,
    ) -> Vec<ReceivedSpan> {
        self.wait("spans", |all| {
            let found: Vec<_> = all.spans.iter().filter(|span| fits(span)).cloned().collect();
            (found.len() >= count).then_some(found)
        })
        .await
    }

    /// Returns all spans received so far.
    pub(crate) fn spans_so_far(&self) -> Vec<ReceivedSpan> {
        self.received.all.lock().unwrap().spans.clone()
    }

    /// Waits until the latest data of a metric fits, and returns it.
    pub(crate) async fn metric(&self, name: &str, fits: impl Fn(&metric::Data) -> bool) -> Metric {
        self.wait(name, |all| {
            let latest = all.metrics.iter().rev().find(|metric| metric.name == name)?;
            latest.data.as_ref().is_some_and(&fits).then(|| latest.clone())
        })
        .await
    }

    /// Returns the sender's resource attributes.
    pub(crate) fn resource(&self) -> BTreeMap<String, String> {
        self.received.all.lock().unwrap().resource.clone()
    }

    /// Returns a header of the last request.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.received.all.lock().unwrap().headers.get(name).cloned()
    }

    async fn wait<T>(&self, what: &str, find: impl Fn(&ReceivedData) -> Option<T>) -> T {
        let mut changes = self.received.changes.subscribe();
        wait_for(what, async {
            loop {
                if let Some(found) = find(&self.received.all.lock().unwrap()) {
                    return found;
                }
                changes.changed().await.expect("the collector lives");
            }
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Received {
    fn new() -> Arc<Self> {
        Arc::new(Self { all: Mutex::default(), changes: watch::Sender::new(0) })
    }

    /// Stores a request, or returns the status of the refusal.
    fn take<T>(&self, headers: &HeaderMap, keep: impl FnOnce(&mut ReceivedData) -> T) -> Result<T, u16> {
        let mut all = self.all.lock().unwrap();
        all.headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let result = match all.refusal {
            Some(status) => {
                all.refused += 1;
                Err(status)
            }
            None => Ok(keep(&mut all)),
        };
        drop(all);
        self.changes.send_modify(|changes| *changes += 1);
        result
    }

    fn take_spans(
        &self,
        headers: &HeaderMap,
        request: ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, u16> {
        self.take(headers, |all| {
            for of_resource in request.resource_spans {
                all.resource =
                    of_resource.resource.map(|resource| texts(&resource.attributes)).unwrap_or_default();
                let spans = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
                all.spans.extend(spans.map(ReceivedSpan::from));
            }
            let partial = ExportTracePartialSuccess { rejected_spans: all.rejected, ..Default::default() };
            ExportTraceServiceResponse { partial_success: (all.rejected > 0).then_some(partial) }
        })
    }

    fn take_metrics(&self, headers: &HeaderMap, request: ExportMetricsServiceRequest) -> Result<(), u16> {
        self.take(headers, |all| {
            let scopes =
                request.resource_metrics.into_iter().flat_map(|of_resource| of_resource.scope_metrics);
            all.metrics.extend(scopes.flat_map(|of_scope| of_scope.metrics));
        })
    }
}

impl From<Span> for ReceivedSpan {
    fn from(span: Span) -> Self {
        Self {
            name: span.name.clone(),
            trace_id: hex(&span.trace_id),
            span_id: hex(&span.span_id),
            parent_id: hex(&span.parent_span_id),
            attributes: texts(&span.attributes),
            span,
        }
    }
}

async fn http_traces(State(received): State<Arc<Received>>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(request) = decoded(&headers, &body) else { return StatusCode::BAD_REQUEST.into_response() };
    http_answer(&received, received.take_spans(&headers, request))
}

async fn http_metrics(State(received): State<Arc<Received>>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(request) = decoded(&headers, &body) else { return StatusCode::BAD_REQUEST.into_response() };
    let taken = received.take_metrics(&headers, request).map(|()| ExportMetricsServiceResponse::default());
    http_answer(&received, taken)
}

fn decoded<T: Message + Default>(headers: &HeaderMap, body: &Bytes) -> Option<T> {
    let is = |name: &str, value: &str| headers.get(name).is_some_and(|header| header == value);
    if !is("content-type", "application/x-protobuf") {
        return None;
    }
    if is("content-encoding", "gzip") {
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&body[..]), &mut unpacked).ok()?;
        return T::decode(&*unpacked).ok();
    }
    T::decode(&body[..]).ok()
}

fn http_answer(received: &Received, taken: Result<impl Message, u16>) -> Response {
    match taken {
        Ok(response) => {
            ([("content-type", "application/x-protobuf")], response.encode_to_vec()).into_response()
        }
        Err(status) => {
            let status = StatusCode::from_u16(status).expect("a status");
            match received.all.lock().unwrap().retry_after.clone() {
                Some(retry_after) => (status, [("retry-after", retry_after)]).into_response(),
                None => status.into_response(),
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Grpc(Arc<Received>);

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let headers = request.metadata().clone().into_headers();
        let taken = self.0.take_spans(&headers, request.into_inner());
        taken.map(tonic::Response::new).map_err(|_| tonic::Status::unavailable("not now"))
    }
}

#[tonic::async_trait]
impl MetricsService for Grpc {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        let headers = request.metadata().clone().into_headers();
        match self.0.take_metrics(&headers, request.into_inner()) {
            Ok(()) => Ok(tonic::Response::new(ExportMetricsServiceResponse::default())),
            Err(_) => Err(tonic::Status::unavailable("not now")),
        }
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
