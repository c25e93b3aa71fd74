//! Execution of calls, whether they have a path of their own or are part of a batch.

use std::time::Instant;

use deeperhub_node::ClientNotFound;
use deeperhub_protocol::message::{TraceContext, check_server_object_within};
use deeperhub_protocol::{ClientId, RawJson, Subscription};

use crate::Api;
use crate::error::ApiError;
use crate::idempotency::IdempotencyKey;
use crate::responses::{Client, Done, Published, Sent, Topic, Unsubscribed};

/// Publishes a message; with an idempotency key, only once. Returns the outcome, and `true` if it
/// is an earlier one.
pub(crate) fn publish(
    api: &Api,
    topic: &str,
    message: &str,
    key: Option<IdempotencyKey<'_>>,
    trace: &TraceContext<'_>,
) -> Result<(Published, bool), ApiError> {
    let topic_text = topic;
    let topic = deeperhub_protocol::Topic::parse(topic_text)?;
    let message = RawJson::parse_within(message, api.config.limits().max_json_depth)?;
    let publish = |before: Option<Published>| match before {
        None => Published::from(api.node.publish_raw(&topic, message, trace)),
        // This node's subscribers already have the message.
        Some(before) => before.with_other_nodes(api.node.publish_to_other_nodes(&topic, message, trace)),
    };
    match key {
        None => Ok((publish(None), false)),
        Some(key) => {
            let config = api.config.limits().idempotency;
            api.publishes.run_once(key, (topic_text, message.as_str()), &config, Instant::now(), publish)
        }
    }
}

pub(crate) async fn send_to_client(api: &Api, client_id: &str, message: &str) -> Result<Done, ApiError> {
    let message = check_server_object_within(message, api.config.limits().max_json_depth)?;
    api.node.send_to_client_raw(&parse_client_id(client_id)?, message).await?;
    Ok(Done {})
}

pub(crate) async fn send_to_user(api: &Api, user: &str, message: &str) -> Result<Sent, ApiError> {
    let message = check_server_object_within(message, api.config.limits().max_json_depth)?;
    Ok(api.node.send_to_user_raw(user, message).await?.into())
}

pub(crate) async fn broadcast(api: &Api, message: &str) -> Result<Sent, ApiError> {
    let message = check_server_object_within(message, api.config.limits().max_json_depth)?;
    Ok(api.node.broadcast_raw(message).await?.into())
}

pub(crate) async fn unsubscribe_client(
    api: &Api,
    client_id: &str,
    topic: &str,
) -> Result<Unsubscribed, ApiError> {
    let topic = Subscription::parse(topic)?;
    let unsubscribed = api.node.unsubscribe_client(&parse_client_id(client_id)?, &topic).await?;
    Ok(Unsubscribed { unsubscribed })
}

pub(crate) async fn unsubscribe_user(api: &Api, user: &str, topic: &str) -> Result<Sent, ApiError> {
    let topic = Subscription::parse(topic)?;
    Ok(api.node.unsubscribe_user(user, &topic).await?.into())
}

pub(crate) async fn disconnect(api: &Api, client_id: &str) -> Result<Done, ApiError> {
    api.node.disconnect(&parse_client_id(client_id)?).await?;
    Ok(Done {})
}

pub(crate) async fn disconnect_user(api: &Api, user: &str) -> Result<Sent, ApiError> {
    Ok(api.node.disconnect_user(user).await?.into())
}

pub(crate) async fn client(api: &Api, client_id: &str) -> Result<Client, ApiError> {
    Ok(api.node.client(&parse_client_id(client_id)?).await?.into())
}

pub(crate) fn topic(api: &Api, topic: &str) -> Result<Topic, ApiError> {
    Ok(api.node.topic(&Subscription::parse(topic)?).into())
}

/// Parses a client ID. An invalid ID gets the error of an unknown client.
fn parse_client_id(client_id: &str) -> Result<ClientId, ApiError> {
    ClientId::parse(client_id).ok_or_else(|| ClientNotFound.into())
}
