//! Publishing and sending.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use deeperhub_node::Target;

use super::{PathParameter, json_response, path_parameter, topic_parameter, trace_context};
use crate::body::Body;
use crate::error::ApiError;
use crate::idempotency::{IdempotencyKey, REPLAYED_HEADER};
use crate::{Api, calls};

/// Publishes the body to a topic.
///
/// If the topic has history, the response has the message's position: `epoch`, `offset` and `time`.
/// If the topic's rule has `ack=disk`, the response comes when the message is on the disk.
///
/// With `Idempotency-Key`, repeating the request publishes nothing and gets the same response,
/// while the server remembers the key (`--idempotency-ttl`, 5 minutes). Such a response has the
/// header `Idempotency-Replayed: true`. After a response with `cluster: "unavailable"`, repeating
/// the request publishes to the other nodes only.
#[cfg_attr(test, utoipa::path(
    post, path = "/v1/topics/{topic}/messages", tag = "messages",
    params(
        ("topic" = String, Path, description = "Topic, percent-encoded", example = "sports.football"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context of the publish"),
        ("tracestate" = Option<String>, Header, description = "W3C trace state, with `traceparent`"),
    ),
    request_body(content = serde_json::Value, content_type = "application/json", description = "Any JSON"),
    responses(
        (status = 200, body = crate::responses::Published, description = "Published", headers(
            ("Idempotency-Replayed" = String, description = "`true` if the response is that of an earlier request")
        )),
        (status = 429, body = ApiError, description = "`too_many_topics`: the topic's rule keeps messages of as many topics as it may, and all of them have subscribers"),
        (status = 422, body = ApiError, description = "`idempotency_key_reused`: the key was used with another topic or body"),
        (status = 503, body = ApiError, description = "`unavailable`: the store of the topic's history, a disk or the cluster's broker, takes no messages or does not answer in time; see `Retry-After`. The message may still be stored, and with `ack=disk` it may have been delivered. A retry with the same `Idempotency-Key` publishes it once"),
        (status = 413, body = ApiError, description = "`message_too_big`: the message is over `--max-message-bytes`, or larger than the cluster's store accepts")
    )
))]
pub(crate) async fn publish(
    State(api): State<Arc<Api>>,
    topic: PathParameter,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let publish = async || {
        let (topic, key) = (topic_parameter(topic)?, IdempotencyKey::of(&headers)?);
        let (published, is_replayed) =
            calls::publish(&api, &topic, body.text()?, key, &trace_context(&headers))?;
        Ok::<_, ApiError>((calls::stored(&api, published, key).await?, is_replayed))
    };
    match publish().await {
        Ok((published, is_replayed)) => {
            let mut response = axum::Json(published).into_response();
            if is_replayed {
                response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
            }
            response
        }
        Err(error) => error.into_response(),
    }
}

/// Sends an object with a string `type` to one client.
#[cfg_attr(test, utoipa::path(
    post, path = "/v1/clients/{client_id}/messages", tag = "messages",
    params(("client_id" = String, Path)),
    request_body(content = Object, content_type = "application/json", description = "An object with a string `type`"),
    responses((status = 200, body = crate::responses::Done, description = "Done"), (status = 404, body = ApiError, description = "`client_not_found`"))
))]
pub(crate) async fn send_to_client(
    State(api): State<Arc<Api>>,
    client_id: PathParameter,
    body: Body,
) -> Response {
    let send = async || calls::send(&api, Target::Client(&path_parameter(client_id)?), body.text()?).await;
    json_response(send().await)
}

/// Sends an object with a string `type` to all connections of a user.
#[cfg_attr(test, utoipa::path(
    post, path = "/v1/users/{user}/messages", tag = "messages",
    params(("user" = String, Path, description = "Percent-encoded")),
    request_body(content = Object, content_type = "application/json", description = "An object with a string `type`"),
    responses((status = 200, body = crate::responses::Sent, description = "Sent"))
))]
pub(crate) async fn send_to_user(State(api): State<Arc<Api>>, user: PathParameter, body: Body) -> Response {
    let send = async || calls::send(&api, Target::User(path_parameter(user)?.into()), body.text()?).await;
    json_response(send().await)
}

/// Sends an object with a string `type` to all clients.
#[cfg_attr(test, utoipa::path(
    post, path = "/v1/broadcast", tag = "messages",
    request_body(content = Object, content_type = "application/json", description = "An object with a string `type`"),
    responses((status = 200, body = crate::responses::Sent, description = "Sent"))
))]
pub(crate) async fn broadcast(State(api): State<Arc<Api>>, body: Body) -> Response {
    let send = async || calls::send(&api, Target::All, body.text()?).await;
    json_response(send().await)
}
