//! Metrics, statistics, health and the OpenAPI document.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use deeperhub_metrics::Format;
use serde::Serialize;

use crate::Api;
use crate::error::{ApiError, Detail};
use crate::openapi;
use crate::responses::{Busiest, ClusterNumbers, NodeStats};

/// Returns metrics as Prometheus text, or as OpenMetrics if `Accept` prefers that.
#[cfg_attr(test, utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, body = String, content_type = "text/plain", description = "The metrics"))))]
pub(crate) async fn metrics(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    let accept: Vec<_> =
        headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).collect();
    let format = Format::negotiate(Some(&accept.join(",")));
    ([(header::CONTENT_TYPE, format.content_type())], api.node.metrics_text(format)).into_response()
}

/// Returns statistics of the node: connections, messages, bytes, latency, probes, process.
///
/// With `scope=cluster`, returns sums over all nodes, and the statistics of each node.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/stats", tag = "operations",
    params(("scope" = Option<String>, Query, description = "`node`, the default, or `cluster`")),
    responses(
        (status = 200, body = Numbers, description = "The statistics"),
        (status = 400, body = ApiError, description = "`invalid_message`")
    )
))]
pub(crate) async fn stats(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let numbers = async || {
        Ok(match super::query::scope(query.as_deref())? {
            super::query::Scope::Node => {
                Numbers::Node(Box::new(NodeStats::new(api.node.node_id(), &api.node.stats())))
            }
            super::query::Scope::Cluster => Numbers::Cluster(api.node.node_totals().await.into()),
        })
    };
    super::json_response(numbers().await)
}

/// Statistics of the node or of the cluster, depending on `scope`.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(untagged)]
pub(crate) enum Numbers {
    Node(#[cfg_attr(test, schema(inline = false))] Box<NodeStats>),
    Cluster(ClusterNumbers),
}

/// Returns samples of the node's statistics: one each 5 seconds, of the last 15 minutes.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/stats/samples", tag = "operations", operation_id = "stats_samples",
    params(("after" = Option<u64>, Query, description = "Only samples after this time, in milliseconds since the Unix epoch")),
    responses((status = 200, body = crate::samples::StatsSamples, description = "The samples, the oldest first"), (status = 400, body = ApiError, description = "`invalid_message`"))
))]
pub(crate) async fn stats_samples(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let samples = || {
        let after = match super::query::text_parameter(query.as_deref(), "after")? {
            None => 0,
            Some(text) => text.parse().map_err(|_| {
                ApiError::parameter("after", "invalid after; expected milliseconds since the Unix epoch")
            })?,
        };
        // Nothing records samples in a router that another HTTP server runs.
        api.samples.record_if_due(&api.node);
        Ok(api.samples.after(after))
    };
    super::json_response(samples())
}

/// Returns the busiest topics and clients of this node.
///
/// Counting starts with the first call and stops half a minute after the last one, so call again
/// every few seconds. Memory is bounded: a Space-Saving sketch of 128 names per worker, which
/// always includes the busiest ones.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/top", tag = "operations",
    params(("limit" = Option<u32>, Query, description = "Maximum number of topics and of clients, default 20", minimum = 1, maximum = 128)),
    responses((status = 200, body = Busiest, description = "The busiest topics and clients"), (status = 400, body = ApiError, description = "`invalid_message`"))
))]
pub(crate) async fn top(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let top = async || {
        let mut limit = 20;
        for (name, value) in super::query::query_parameters(query.as_deref())? {
            if name == "limit" {
                let invalid =
                    || ApiError::parameter("limit", "invalid limit; expected a number from 1 to 128");
                limit = value.parse().ok().filter(|limit| (1..=128).contains(limit)).ok_or_else(invalid)?;
            }
        }
        Ok(Busiest::from(api.node.top(limit).await))
    };
    super::json_response(top().await)
}

/// Liveness: 200 while the process serves HTTP.
#[cfg_attr(test, utoipa::path(get, path = "/health/live", tag = "operations", responses((status = 200, body = Live, description = "The process is live"))))]
pub(crate) async fn live() -> Response {
    axum::Json(Live { status: "live" }).into_response()
}

/// Readiness: 200 while the node accepts connections and all workers deliver, otherwise 503 with
/// the reasons.
///
/// Delivery is proved with a probe, which is published to each worker every `--canary-interval` and
/// must come back.
#[cfg_attr(test, utoipa::path(get, path = "/health/ready", tag = "operations",
    responses((status = 200, body = Ready, description = "The node should get traffic"), (status = 503, body = Unready, description = "The node should get no traffic now"))))]
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

/// The process is live.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Live {
    /// `live`.
    status: &'static str,
}

/// The node should get traffic.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Ready {
    /// `ready`.
    status: &'static str,
}

/// The node should get no traffic now.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Unready {
    /// The first reason.
    error: Detail,
    /// `unready`.
    status: &'static str,
    /// All reasons.
    reasons: Vec<Reason>,
}

/// One reason why a node is not ready.
#[derive(Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Reason {
    /// Check that failed.
    #[cfg_attr(test, schema(example = "canary"))]
    check: &'static str,
    /// Stable code for programs.
    #[cfg_attr(test, schema(example = "delivery_stalled"))]
    code: &'static str,
    /// Explanation for people.
    message: String,
    /// Worker that the reason concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<u16>,
    /// Start of the problem in milliseconds since the Unix epoch, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_unix_ms: Option<u64>,
}

impl Reason {
    fn new(reason: &deeperhub_node::UnreadyReason) -> Self {
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

/// Returns this OpenAPI document.
#[cfg_attr(test, utoipa::path(get, path = "/openapi.json", tag = "operations", operation_id = "description",
    responses((status = 200, body = Object, description = "The document"))))]
pub(crate) async fn openapi_json() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}
