//! Metrics, health and the description of this API.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use deeperhub_metrics::Format;
use deeperhub_node::Phase;
use serde_json::json;

use crate::Api;
use crate::error::ApiError;

/// Metrics as Prometheus text, or as OpenMetrics where `Accept` prefers that.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, content_type = "text/plain")))]
pub(crate) async fn metrics(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    let accept: Vec<_> =
        headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).collect();
    let format = Format::negotiate(Some(&accept.join(",")));
    ([(header::CONTENT_TYPE, format.content_type())], api.node.metrics_text(format)).into_response()
}

/// 200 as long as the process runs.
#[utoipa::path(get, path = "/health/live", tag = "operations", responses((status = 200)))]
pub(crate) async fn live() -> Response {
    axum::Json(json!({ "status": "live" })).into_response()
}

/// 200 while it takes connections, 503 while it starts, drains or has stopped.
#[utoipa::path(get, path = "/health/ready", tag = "operations",
    responses((status = 200), (status = 503, body = ApiError)))]
pub(crate) async fn ready(State(api): State<Arc<Api>>) -> Response {
    let (code, message) = match api.node.phase() {
        Phase::Serving => return axum::Json(json!({ "status": "ready" })).into_response(),
        Phase::Starting => ("starting", "the node is starting"),
        Phase::Draining => ("draining", "the node shuts down"),
        Phase::Stopped => ("stopped", "the node has stopped"),
    };
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message).into_response()
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses((status = 200)))]
pub(crate) async fn description() -> Response {
    axum::Json(super::openapi()).into_response()
}
