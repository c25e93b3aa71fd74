//! Batches: many calls in one request.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use deeperhub_node::Target;
use deeperhub_protocol::message::TraceContext;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{json_response, trace_context};
use crate::body::Body;
use crate::error::ApiError;
use crate::idempotency::IdempotencyKey;
use crate::responses::Published;
use crate::{Api, calls};

/// Calls that run one after the other.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch<'a> {
    /// Each call is an object with one key, the name of the call.
    #[serde(borrow)]
    #[cfg_attr(test, schema(value_type = Vec<Call>, min_items = 1))]
    calls: Vec<&'a RawValue>,
}

/// One call of a batch.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Call<'a> {
    /// Same as `POST /v1/topics/{topic}/messages`.
    Publish {
        #[serde(borrow)]
        #[cfg_attr(test, schema(value_type = String))]
        topic: Cow<'a, str>,
        /// Any JSON.
        #[serde(borrow)]
        #[cfg_attr(test, schema(value_type = serde_json::Value))]
        message: &'a RawValue,
        /// Same as the header `Idempotency-Key`.
        #[cfg_attr(test, schema(value_type = String, required = false))]
        idempotency_key: Option<String>,
    },
    /// Same as `POST /v1/clients/{client_id}/messages`.
    SendToClient {
        client_id: String,
        /// An object with a string `type`.
        #[serde(borrow)]
        #[cfg_attr(test, schema(value_type = Object))]
        message: &'a RawValue,
    },
    /// Same as `POST /v1/users/{user}/messages`.
    SendToUser {
        user: String,
        /// An object with a string `type`.
        #[serde(borrow)]
        #[cfg_attr(test, schema(value_type = Object))]
        message: &'a RawValue,
    },
    /// Same as `POST /v1/broadcast`.
    Broadcast {
        /// An object with a string `type`.
        #[serde(borrow)]
        #[cfg_attr(test, schema(value_type = Object))]
        message: &'a RawValue,
    },
    /// Same as `DELETE /v1/clients/{client_id}/subscriptions/{topic}`.
    UnsubscribeClient { client_id: String, topic: String },
    /// Same as `DELETE /v1/users/{user}/subscriptions/{topic}`.
    UnsubscribeUser { user: String, topic: String },
    /// Same as `DELETE /v1/topics/{topic}/subscriptions`.
    UnsubscribeAll { topic: String },
    /// Same as `DELETE /v1/clients/{client_id}`.
    Disconnect { client_id: String },
    /// Same as `DELETE /v1/users/{user}`.
    DisconnectUser { user: String },
    /// Same as `DELETE /v1/clients`.
    DisconnectAll {},
    /// Same as `GET /v1/clients/{client_id}`.
    Client { client_id: String },
    /// Same as `GET /v1/topics/{topic}`.
    Topic { topic: String },
}

/// Results of a batch.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Results {
    /// One result per call, in the order of the calls.
    results: Vec<CallResult>,
}

/// Result of one call.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct CallResult {
    /// HTTP status that the call alone would have had.
    #[cfg_attr(test, schema(example = 200))]
    status: u16,
    /// Body that the call alone would have had.
    #[cfg_attr(test, schema(value_type = Object))]
    body: Box<RawValue>,
}

impl CallResult {
    fn not_carried_out() -> Self {
        let message =
            "the batch timed out before this call, which had no effect; send it again in another batch";
        Self::failed(&ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_carried_out", message))
    }

    fn failed(error: &ApiError) -> Self {
        Self { status: error.status().as_u16(), body: to_raw_json(error) }
    }
}

/// A publish that may still have to be stored.
#[derive(Debug)]
struct Publish {
    published: Published,
    /// Its idempotency key.
    key: Option<String>,
}

/// Number of calls that run before other tasks get a turn.
const CALLS_PER_TURN: usize = 16;

/// Runs many calls, one after the other. A failed call does not stop the batch.
///
/// The status is 200 if the batch is well-formed; the body has one result per call. Calls that have
/// not started within `--api-timeout` have no effect (503 `not_carried_out`). Publishes to one
/// topic, and sends to one client, keep their order. `traceparent` applies to all publishes.
#[cfg_attr(test, utoipa::path(
    post, path = "/v1/batch", tag = "batch",
    request_body(content = Batch, content_type = "application/json"),
    responses((status = 200, body = Results, description = "One result per call"))
))]
pub(crate) async fn batch(State(api): State<Arc<Api>>, headers: HeaderMap, body: Body) -> Response {
    let run = async || {
        let limits = api.config.limits();
        let body = body.text()?;
        let batch: Batch<'_> = serde_json::from_str(body).map_err(|error| invalid_batch(&error))?;
        if batch.calls.is_empty() || batch.calls.len() > limits.max_batch_calls {
            let message = format!(
                "the batch has {} calls; expected 1 to {}",
                batch.calls.len(),
                limits.max_batch_calls
            );
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_message", message));
        }
        let trace = trace_context(&headers);
        let mut results = Vec::with_capacity(batch.calls.len());
        let mut waiting = Vec::new();
        let deadline = Instant::now() + api.config.fixed().timeout;
        for (number, call) in batch.calls.into_iter().enumerate() {
            if number % CALLS_PER_TURN == CALLS_PER_TURN - 1 {
                // Lets other tasks run.
                tokio::task::yield_now().await;
            }
            results.push(if Instant::now() < deadline {
                let (result, published) = call_result(&api, call.get(), limits.max_body_bytes, &trace).await;
                waiting.extend(published.map(|published| (number, published)));
                result
            } else {
                // Each call may wait for a hung worker; the sum of such waits must be bounded.
                CallResult::not_carried_out()
            });
        }
        // All of them share the same writes to the store.
        let stored = waiting.iter().map(async |(_, Publish { published, key })| {
            let key = key.as_deref().map(IdempotencyKey::parse).transpose()?;
            calls::stored(&api, *published, key).await
        });
        for ((number, _), stored) in waiting.iter().zip(join_all(stored).await) {
            if let Some(result) = results.get_mut(*number) {
                *result = match stored {
                    Ok(published) => CallResult { status: 200, body: to_raw_json(&published) },
                    Err(error) => CallResult::failed(&error),
                };
            }
        }
        Ok(Results { results })
    };
    json_response(run().await)
}

/// Executes a call. Returns its result, and the outcome of a publish that may still have to be
/// stored.
async fn call_result(
    api: &Api,
    call: &str,
    max_message_bytes: usize,
    trace: &TraceContext<'_>,
) -> (CallResult, Option<Publish>) {
    match execute(api, call, max_message_bytes, trace).await {
        Ok((body, published)) => (CallResult { status: 200, body }, published),
        Err(error) => (CallResult::failed(&error), None),
    }
}

async fn execute(
    api: &Api,
    call: &str,
    max_message_bytes: usize,
    trace: &TraceContext<'_>,
) -> Result<(Box<RawValue>, Option<Publish>), ApiError> {
    let call: Call<'_> = serde_json::from_str(call).map_err(|error| invalid_batch(&error))?;
    let check_size = |message: &RawValue| {
        if message.get().len() > max_message_bytes { Err(ApiError::body_too_large()) } else { Ok(()) }
    };
    let send = async |target: Target<'_, &str>, message: &RawValue| {
        check_size(message)?;
        Ok::<_, ApiError>(to_raw_json(&calls::send(api, target, message.get()).await?))
    };
    let unsubscribe = async |target: Target<'_, &str>, topic: &str| {
        Ok::<_, ApiError>(to_raw_json(&calls::unsubscribe(api, target, topic).await?))
    };
    let disconnect = async |target: Target<'_, &str>| {
        Ok::<_, ApiError>(to_raw_json(&calls::disconnect(api, target).await?))
    };
    let body = match &call {
        Call::Publish { topic, message: payload, idempotency_key } => {
            check_size(payload)?;
            let key = idempotency_key.as_deref().map(IdempotencyKey::parse).transpose()?;
            let (published, _) = calls::publish(api, topic, payload.get(), key, trace)?;
            let body = to_raw_json(&published);
            return Ok((body, Some(Publish { published, key: idempotency_key.clone() })));
        }
        Call::SendToClient { client_id, message } => send(Target::Client(client_id), message).await?,
        Call::SendToUser { user, message } => send(Target::User(user.into()), message).await?,
        Call::Broadcast { message } => send(Target::All, message).await?,
        Call::UnsubscribeClient { client_id, topic } => unsubscribe(Target::Client(client_id), topic).await?,
        Call::UnsubscribeUser { user, topic } => unsubscribe(Target::User(user.into()), topic).await?,
        Call::UnsubscribeAll { topic } => unsubscribe(Target::All, topic).await?,
        Call::Disconnect { client_id } => disconnect(Target::Client(client_id)).await?,
        Call::DisconnectUser { user } => disconnect(Target::User(user.into())).await?,
        Call::DisconnectAll {} => disconnect(Target::All).await?,
        Call::Client { client_id } => to_raw_json(&calls::client(api, client_id).await?),
        Call::Topic { topic } => to_raw_json(&calls::topic(api, topic).await?),
    };
    Ok((body, None))
}

/// Serializes a response body. Bodies are plain structs, whose serialization cannot fail.
fn to_raw_json(response: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(response).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn invalid_batch(error: &serde_json::Error) -> ApiError {
    let code = if error.is_data() { "invalid_message" } else { "invalid_json" };
    ApiError::new(StatusCode::BAD_REQUEST, code, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::Request;
    use deeperhub_node::{Config, Node};
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::{ApiConfig, router};

    /// Returns the status of each call of a batch with this timeout.
    async fn statuses(timeout: Duration) -> Vec<u64> {
        let node = Node::start(([127, 0, 0, 1], 0).into(), Config::default()).unwrap();
        let config = ApiConfig { timeout, ..ApiConfig::default() };
        let service = TowerToHyperService::new(router(node.handle(), config));
        let calls = vec![r#"{"publish":{"topic":"a","message":1}}"#; 40].join(",");
        let request = Request::post("/v1/batch")
            .header("host", "localhost")
            .body(axum::body::Body::from(format!(r#"{{"calls":[{calls}]}}"#)))
            .unwrap();
        let response = service.call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let results: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let results = results["results"].as_array().unwrap();
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect()
    }

    #[tokio::test]
    async fn calls_after_the_timeout_of_a_batch_do_not_run() {
        assert_eq!(statuses(Duration::from_secs(60)).await, [200; 40]);
        assert_eq!(statuses(Duration::ZERO).await, [503; 40]);
    }
}
