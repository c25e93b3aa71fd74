//! Execution of calls, whether they have a path of their own or are part of a batch.

use std::time::Instant;

use deeperhub_node::{Action, ClientNotFound, Operation, Target, TopicHistory};
use deeperhub_protocol::message::{TraceContext, check_server_object_within};
use deeperhub_protocol::{ClientId, RawJson, Subscription};

use crate::Api;
use crate::error::ApiError;
use crate::idempotency::IdempotencyKey;
use crate::responses::{Client, Executed, Published, SubscriptionPosition, Topic};

/// Publishes a message; with an idempotency key, only once. Returns the outcome, and `true` if it
/// is an earlier one.
///
/// The caller then waits until the message is stored ([`stored`]).
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
        None => Ok(Published::from(api.node.publish_raw(&topic, message, trace)?)),
        // This node's subscribers already have the message.
        Some(before) => Ok(before.with_other_nodes(api.node.publish_to_other_nodes(&topic, message, trace))),
    };
    match key {
        None => Ok((publish(None)?, false)),
        Some(key) => {
            let config = api.config.limits().idempotency;
            let has_failed = |published: &Published| api.node.was_refused(&published.delivered);
            let request = (topic_text, message.as_str());
            api.publishes.run_once(key, request, &config, Instant::now(), has_failed, publish)
        }
    }
}

/// Waits until a published message is stored, if its topic's rule asks for that or the cluster
/// keeps its history. Returns the outcome with the message's position, which requests with the same
/// idempotency key then get, too.
pub(crate) async fn stored(
    api: &Api,
    published: Published,
    key: Option<IdempotencyKey<'_>>,
) -> Result<Published, ApiError> {
    let stored = published.with_stored(api.node.stored(&published.delivered).await?);
    if let Some(key) = key
        && stored != published
    {
        api.publishes.complete(key, published, stored);
    }
    Ok(stored)
}

/// Sends an object with a string `type`.
pub(crate) async fn send(api: &Api, target: Target<'_, &str>, message: &str) -> Result<Executed, ApiError> {
    let message = check_server_object_within(message, api.config.limits().max_json_depth)?;
    execute(api, &target, Action::Send(message)).await
}

/// Ends subscriptions to a topic or pattern.
pub(crate) async fn unsubscribe(
    api: &Api,
    target: Target<'_, &str>,
    topic: &str,
) -> Result<Executed, ApiError> {
    let topic = Subscription::parse(topic)?;
    execute(api, &target, Action::Unsubscribe(topic)).await
}

/// Closes connections.
pub(crate) async fn disconnect(api: &Api, target: Target<'_, &str>) -> Result<Executed, ApiError> {
    execute(api, &target, Action::Disconnect).await
}

/// Executes an action on clients. A single client is named by the text of its ID.
async fn execute(api: &Api, target: &Target<'_, &str>, action: Action<'_>) -> Result<Executed, ApiError> {
    let target = target.try_map_client(|client_id| parse_client_id(client_id))?;
    let operation = Operation::new(target, action);
    let delivered = api.node.execute(&operation).await?;
    Ok(Executed::new(&operation, delivered))
}

pub(crate) async fn client(api: &Api, client_id: &str) -> Result<Client, ApiError> {
    let mut client = Client::from(api.node.client(&parse_client_id(client_id)?).await?);
    if is_of_this_node(api, &client.client_id) {
        client.positions = Some(positions(api, &client));
    }
    Ok(client)
}

fn is_of_this_node(api: &Api, client_id: &str) -> bool {
    client_id.rsplit_once('.').is_some_and(|(node, _)| node == api.node.node_id())
}

/// Returns the positions of a client's subscriptions to topics with history. A subscription that is
/// not behind stands at the newest message.
fn positions(api: &Api, client: &Client) -> Vec<SubscriptionPosition> {
    let behind = client.connection.as_ref().map(|connection| &*connection.behind).unwrap_or_default();
    let position = |name: &String| {
        let topic = deeperhub_protocol::Topic::parse(name.as_str()).ok()?;
        let newest = api.node.topic_history(&topic)?.offset;
        let behind = behind.iter().find(|behind| behind.topic == *name);
        let offset = behind.map_or(newest, |behind| behind.offset);
        Some(SubscriptionPosition { topic: name.clone(), offset, newest })
    };
    client.subscriptions.iter().filter_map(position).collect()
}

pub(crate) async fn topic(api: &Api, topic: &str) -> Result<Topic, ApiError> {
    let topic = Subscription::parse(topic)?;
    Ok(Topic::from(api.node.topic(&topic)).with_history(history_of(api, &topic).await?))
}

pub(crate) async fn cluster_topic(api: &Api, topic: &str) -> Result<Topic, ApiError> {
    let topic = Subscription::parse(topic)?;
    Ok(Topic::from(api.node.cluster_topic(&topic).await).with_history(history_of(api, &topic).await?))
}

/// Returns the state of a topic's history. Patterns have none.
async fn history_of(api: &Api, topic: &Subscription<'_>) -> Result<Option<TopicHistory>, ApiError> {
    match topic {
        Subscription::Topic(topic) => Ok(api.node.read_topic_history(topic).await?),
        Subscription::Pattern(_) => Ok(None),
    }
}

/// Parses a client ID. An invalid ID gets the error of an unknown client.
fn parse_client_id(client_id: &str) -> Result<ClientId, ApiError> {
    ClientId::parse(client_id).ok_or_else(|| ClientNotFound.into())
}
