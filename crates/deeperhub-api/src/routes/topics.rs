//! What is subscribed to.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;

use super::{PathText, answer, paging, topic_path};
use crate::answers::{Topic, Topics};
use crate::error::ApiError;
use crate::{Api, calls};

/// Topics and patterns with subscribers on this node, a page at a time.
#[utoipa::path(
    get, path = "/v1/topics", tag = "topics",
    params(
        ("limit" = Option<u32>, Query, description = "Most of a page, default 100", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = Topics, description = "A page"), (status = 400, body = ApiError, description = "`invalid_parameter`"))
)]
pub(crate) async fn topics(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let list = || {
        let (limit, cursor) = paging(query.as_deref())?;
        let page = api.node.topics(cursor.as_deref(), limit)?;
        let topics = page.items.into_iter().map(Topic::from).collect();
        Ok(Topics { topics, next_cursor: page.next_cursor })
    };
    answer(list())
}

/// One topic, or one pattern as such. One that nobody subscribes to has 0 subscribers.
#[utoipa::path(
    get, path = "/v1/topics/{topic}", tag = "topics",
    params(("topic" = String, Path, description = "Percent-encoded", example = "sports.football")),
    responses((status = 200, body = Topic, description = "The topic"), (status = 400, body = ApiError, description = "`invalid_topic`"))
)]
pub(crate) async fn topic(State(api): State<Arc<Api>>, topic: PathText) -> Response {
    let find = || calls::topic(&api, &topic_path(topic)?);
    answer(find())
}
