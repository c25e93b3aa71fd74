//! Handlers of the API's paths.

pub(crate) mod batch;
pub(crate) mod clients;
pub(crate) mod cluster;
pub(crate) mod events;
pub(crate) mod history;
pub(crate) mod messages;
pub(crate) mod operations;
mod query;
pub(crate) mod tail;
pub(crate) mod topics;

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use deeperhub_protocol::message::TraceContext;
use serde::Serialize;

pub(crate) use batch::batch;
pub(crate) use clients::{
    client, clients, disconnect, disconnect_all, disconnect_user, unsubscribe_client, unsubscribe_user,
};
pub(crate) use cluster::nodes;
pub(crate) use events::events;
pub(crate) use history::{clear_history, history};
pub(crate) use messages::{broadcast, publish, send_to_client, send_to_user};
pub(crate) use operations::{live, metrics, openapi_json, ready, stats, stats_samples, top};
pub(crate) use tail::tail;
pub(crate) use topics::{topic, topics, unsubscribe_all};

use crate::Api;
use crate::error::ApiError;

/// The page of the dashboard.
pub(crate) async fn dashboard_page(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    api.dashboard.page(&headers)
}

/// A script or style of the dashboard.
pub(crate) async fn dashboard_file(
    State(api): State<Arc<Api>>,
    name: PathParameter,
    headers: HeaderMap,
) -> Response {
    match path_parameter(name) {
        Ok(name) => api.dashboard.file(&name, &headers),
        Err(error) => error.into_response(),
    }
}

type PathParameter = Result<Path<String>, PathRejection>;
type PathParameters = Result<Path<(String, String)>, PathRejection>;

fn invalid_path() -> ApiError {
    ApiError::parameter("path", "the percent-decoded path is not UTF-8")
}

/// Returns the only parameter of a path, percent-decoded.
fn path_parameter(path: PathParameter) -> Result<String, ApiError> {
    path.map(|Path(text)| text).map_err(|_| invalid_path())
}

/// Returns the two parameters of a path, percent-decoded.
fn path_parameters(paths: PathParameters) -> Result<(String, String), ApiError> {
    paths.map(|Path(texts)| texts).map_err(|_| invalid_path())
}

/// Returns the only parameter of a path, a topic or pattern, percent-decoded.
fn topic_parameter(path: PathParameter) -> Result<String, ApiError> {
    path_parameter(path).map_err(|_| ApiError::invalid_topic("the percent-decoded topic is not UTF-8"))
}

/// Returns the trace context of a request.
fn trace_context(headers: &HeaderMap) -> TraceContext<'_> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(Cow::Borrowed);
    TraceContext::new(header("traceparent"), header("tracestate"))
}

/// Returns the response for a value or an error, as JSON.
fn json_response(result: Result<impl Serialize, ApiError>) -> Response {
    match result {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}
