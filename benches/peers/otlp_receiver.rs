//! Receives and counts OTLP exports over HTTP with protobuf: `otlp-receiver PORT`.
//!
//! `GET /counts` returns the number of spans and metrics received.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;

#[derive(Debug, Default)]
struct Counts {
    spans: AtomicU64,
    metrics: AtomicU64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).ok_or("usage: otlp-receiver PORT")?.parse()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let router = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .route("/counts", get(counts))
            .with_state(Arc::new(Counts::default()));
        axum::serve(listener, router).await
    })?;
    Ok(())
}

async fn traces(State(counts): State<Arc<Counts>>, body: Bytes) -> Response {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let scopes = request.resource_spans.iter().flat_map(|of_resource| &of_resource.scope_spans);
    counts.spans.fetch_add(scopes.map(|scope| scope.spans.len() as u64).sum(), Ordering::Relaxed);
    ExportTraceServiceResponse::default().encode_to_vec().into_response()
}

async fn metrics(State(counts): State<Arc<Counts>>, body: Bytes) -> Response {
    let Ok(request) = ExportMetricsServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let scopes = request.resource_metrics.iter().flat_map(|of_resource| &of_resource.scope_metrics);
    counts.metrics.fetch_add(scopes.map(|scope| scope.metrics.len() as u64).sum(), Ordering::Relaxed);
    ExportMetricsServiceResponse::default().encode_to_vec().into_response()
}

async fn counts(State(counts): State<Arc<Counts>>) -> String {
    let (spans, metrics) = (counts.spans.load(Ordering::Relaxed), counts.metrics.load(Ordering::Relaxed));
    format!("{{\"spans\":{spans},\"metrics\":{metrics}}}")
}
