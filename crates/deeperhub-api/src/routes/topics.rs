//! Subscribed topics and patterns.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use deeperhub_node::Target;
use deeperhub_protocol::Subscription;

use super::query::{Scope, paging, scope, text_parameter};
use super::{PathParameter, json_response, topic_parameter};
use crate::error::ApiError;
use crate::responses::{Topic, Topics};
use crate::search::search;
use crate::{Api, calls};

/// Lists the topics and patterns with subscribers on this node, or on all nodes, one page at a
/// time.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/topics", tag = "topics",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum items of the page, default 100", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
        ("scope" = Option<String>, Query, description = "`node`, the default, or `cluster`"),
        ("prefix" = Option<String>, Query, description = "Only names that start with this text", example = "sports."),
        ("match" = Option<String>, Query, description = "Only names that this topic or pattern covers. With `prefix` or `match`, a page may be shorter than the limit, or empty, and have a `next_cursor`", example = "sports.>"),
    ),
    responses((status = 200, body = Topics, description = "A page"), (status = 400, body = ApiError, description = "`invalid_message`"))
))]
pub(crate) async fn topics(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let list = async || {
        let query = query.as_deref();
        let ((limit, cursor), scope) = (paging(query)?, scope(query)?);
        let prefix = text_parameter(query, "prefix")?.unwrap_or_default();
        let pattern = match text_parameter(query, "match")? {
            None => None,
            Some(text) => Some(
                Subscription::parse(text).map_err(|error| ApiError::parameter("match", error.to_string()))?,
            ),
        };
        let is_match = |topic: &Topic| {
            let covers = |pattern: &Subscription<'_>| {
                Subscription::parse(topic.topic.as_str()).is_ok_and(|name| pattern.covers(&name))
            };
            topic.topic.starts_with(&prefix) && pattern.as_ref().is_none_or(covers)
        };
        let page = |cursor, limit| topics_page(&api, scope, cursor, limit);
        if prefix.is_empty() && pattern.is_none() {
            return page(cursor, limit).await;
        }
        search(limit, cursor, is_match, page).await
    };
    json_response(list().await)
}

async fn topics_page(
    api: &Api,
    scope: Scope,
    cursor: Option<String>,
    limit: usize,
) -> Result<Topics, ApiError> {
    let cursor = cursor.as_deref();
    Ok(match scope {
        Scope::Node => Topics::from(api.node.topics(cursor, limit)?),
        Scope::Cluster => Topics::from(api.node.cluster_topics(cursor, limit).await?),
    })
}

/// Describes one topic or pattern. Without subscribers, its count is 0. `history` describes the kept
/// messages of a topic.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/topics/{topic}", tag = "topics",
    params(
        ("topic" = String, Path, description = "Topic or pattern, percent-encoded", example = "sports.football"),
        ("scope" = Option<String>, Query, description = "`node`, the default, or `cluster`"),
    ),
    responses((status = 200, body = Topic, description = "The topic"), (status = 400, body = ApiError, description = "`invalid_topic`"))
))]
pub(crate) async fn topic(
    State(api): State<Arc<Api>>,
    topic: PathParameter,
    RawQuery(query): RawQuery,
) -> Response {
    let find = async || {
        let topic = topic_parameter(topic)?;
        match scope(query.as_deref())? {
            Scope::Node => calls::topic(&api, &topic).await,
            Scope::Cluster => calls::cluster_topic(&api, &topic).await,
        }
    };
    json_response(find().await)
}

/// Ends the subscriptions of all clients to a topic or pattern.
///
/// Each client with the subscription gets an `unsubscribed` without an `id`. It may subscribe again
/// unless its token forbids it.
#[cfg_attr(test, utoipa::path(
    delete, path = "/v1/topics/{topic}/subscriptions", tag = "topics",
    params(("topic" = String, Path, description = "Topic or pattern exactly as subscribed to, percent-encoded")),
    responses((status = 200, body = crate::responses::Sent, description = "Number of connections whose subscription was ended"), (status = 400, body = ApiError, description = "`invalid_topic`"))
))]
pub(crate) async fn unsubscribe_all(State(api): State<Arc<Api>>, topic: PathParameter) -> Response {
    let unsubscribe = async || calls::unsubscribe(&api, Target::All, &topic_parameter(topic)?).await;
    json_response(unsubscribe().await)
}
