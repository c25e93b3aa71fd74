//! What is subscribed to.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use deeperhub_node::TopicInfo;
use deeperhub_protocol::Subscription;
use serde_json::{Value, json};

use super::{PathText, answer, paging, path};
use crate::Api;
use crate::error::ApiError;

/// Topics and patterns with subscribers on this node, a page at a time.
#[utoipa::path(
    get, path = "/v1/topics", tag = "topics",
    params(("limit" = Option<usize>, Query, description = "1 to 1000, default 100"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "`{\"topics\": […], \"next_cursor\"}`"), (status = 400, body = ApiError))
)]
pub(crate) async fn topics(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let list = || {
        let (limit, cursor) = paging(query.as_deref())?;
        let page = api.node.topics(cursor.as_deref(), limit)?;
        let topics: Vec<_> = page.items.iter().map(shown).collect();
        Ok(match page.next_cursor {
            Some(next_cursor) => json!({ "topics": topics, "next_cursor": next_cursor }),
            None => json!({ "topics": topics }),
        })
    };
    answer(list())
}

/// One topic, or one pattern as such.
#[utoipa::path(
    get, path = "/v1/topics/{topic}", tag = "topics",
    params(("topic" = String, Path, description = "Percent-encoded")),
    responses((status = 200, description = "`topic`, `subscribers`"), (status = 400, body = ApiError))
)]
pub(crate) async fn topic(State(api): State<Arc<Api>>, topic: PathText) -> Response {
    let find = || {
        let topic = Subscription::parse(path(topic)?)?;
        Ok(shown(&api.node.topic(&topic)))
    };
    answer(find())
}

fn shown(topic: &TopicInfo) -> Value {
    json!({ "topic": topic.topic, "subscribers": topic.subscribers })
}
