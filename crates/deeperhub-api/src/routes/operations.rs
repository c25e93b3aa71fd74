//! Metrics, health and the description of this API.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use deeperhub_metrics::Format;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::Api;
use crate::error::Detail;

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

/// 200 while it takes connections and every worker delivers, otherwise 503 with the reasons.
///
/// Proved by a probe that is published to each worker every `--canary-interval` and must come back.
#[utoipa::path(get, path = "/health/ready", tag = "operations",
    responses((status = 200, body = Ready), (status = 503, body = Unready)))]
pub(crate) async fn ready(State(api): State<Arc<Api>>) -> Response {
    let health = api.node.health();
    let Some(first) = health.reasons.first() else {
        return axum::Json(Ready { status: "ready" }).into_response();
    };
    let error = Detail::new(first.code, first.message.clone());
    let reasons = health.reasons.iter().map(Reason::new).collect();
    let unready = Unready { error, status: "unready", reasons };
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(unready)).into_response()
}

/// The node should get traffic.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ready {
    /// `ready`.
    status: &'static str,
}

/// The node should get no traffic now.
#[derive(Serialize, ToSchema)]
pub(crate) struct Unready {
    /// The first of the reasons.
    error: Detail,
    /// `unready`.
    status: &'static str,
    /// All that speaks against it.
    reasons: Vec<Reason>,
}

/// One reason why a node is not ready.
#[derive(Serialize, ToSchema)]
pub(crate) struct Reason {
    /// What found it.
    #[schema(example = "canary")]
    check: &'static str,
    /// A word for programs.
    #[schema(example = "delivery_stalled")]
    code: &'static str,
    /// A sentence for people.
    message: String,
    /// The worker that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<u16>,
    /// Since when, in milliseconds since the Unix epoch, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_unix_ms: Option<u64>,
}

impl Reason {
    fn new(reason: &deeperhub_node::Unready) -> Self {
        let since = reason.since.map(|since| since.duration_since(UNIX_EPOCH).unwrap_or_default());
        Self {
            check: reason.check.as_str(),
            code: reason.code,
            message: reason.message.clone().into_owned(),
            worker: reason.worker,
            since_unix_ms: since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses((status = 200)))]
pub(crate) async fn description() -> Response {
    axum::Json(super::openapi()).into_response()
}
