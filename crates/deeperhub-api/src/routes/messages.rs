//! Publishing and sending.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use deeperhub_node::ClientNotFound;
use deeperhub_protocol::message::{TraceContext, check_server_object};
use deeperhub_protocol::{ClientId, RawJson, Topic};
use serde_json::json;

use super::{Body, PathText, answer, path, text, told};
use crate::Api;
use crate::error::ApiError;

/// Publishes the body to a topic.
#[utoipa::path(
    post, path = "/v1/topics/{topic}/messages", tag = "messages",
    params(("topic" = String, Path, description = "One topic, percent-encoded")),
    request_body(content = String, content_type = "application/json", description = "Any JSON"),
    responses(
        (status = 200, description = "How many subscriptions of this node matched: `{\"subscribers\": n}`"),
        (status = 400, body = ApiError), (status = 413, body = ApiError)
    )
)]
pub(crate) async fn publish(
    State(api): State<Arc<Api>>,
    topic: PathText,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let publish = || {
        let topic = Topic::parse(path(topic)?)?;
        let message = RawJson::parse(text(&body)?)?;
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(Cow::Borrowed);
        let trace = TraceContext::new(header("traceparent"), header("tracestate"));
        let delivered = api.node.publish(&topic, message, &trace);
        Ok(told(delivered, "subscribers"))
    };
    answer(publish())
}

/// Sends an object with a string `type` to one client.
#[utoipa::path(
    post, path = "/v1/clients/{client_id}/messages", tag = "messages",
    params(("client_id" = String, Path)),
    request_body(content = String, content_type = "application/json", description = "An object with a string `type`"),
    responses((status = 200), (status = 400, body = ApiError), (status = 404, body = ApiError))
)]
pub(crate) async fn send_to_client(State(api): State<Arc<Api>>, client_id: PathText, body: Body) -> Response {
    let send = async || {
        let client_id = path(client_id)?;
        let message = check_server_object(text(&body)?)?;
        let client_id = ClientId::parse(&client_id).ok_or(ClientNotFound)?;
        api.node.send_to_client(&client_id, message).await?;
        Ok(json!({}))
    };
    answer(send().await)
}

/// Sends an object with a string `type` to every connection of a user.
#[utoipa::path(
    post, path = "/v1/users/{user}/messages", tag = "messages",
    params(("user" = String, Path, description = "Percent-encoded")),
    request_body(content = String, content_type = "application/json", description = "An object with a string `type`"),
    responses((status = 200, description = "`{\"clients\": n}`"), (status = 400, body = ApiError))
)]
pub(crate) async fn send_to_user(State(api): State<Arc<Api>>, user: PathText, body: Body) -> Response {
    let send = async || {
        let user = path(user)?;
        let message = check_server_object(text(&body)?)?;
        Ok(told(api.node.send_to_user(&user, message).await, "clients"))
    };
    answer(send().await)
}

/// Sends an object with a string `type` to every client.
#[utoipa::path(
    post, path = "/v1/broadcast", tag = "messages",
    request_body(content = String, content_type = "application/json", description = "An object with a string `type`"),
    responses((status = 200, description = "`{\"clients\": n}`"), (status = 400, body = ApiError))
)]
pub(crate) async fn broadcast(State(api): State<Arc<Api>>, body: Body) -> Response {
    let send = async || {
        let message = check_server_object(text(&body)?)?;
        Ok(told(api.node.broadcast(message).await, "clients"))
    };
    answer(send().await)
}
