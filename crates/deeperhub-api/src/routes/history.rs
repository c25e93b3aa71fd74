//! History of topics, one page at a time.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use deeperhub_node::HistoryRequest;
use deeperhub_protocol::Topic;
use serde_json::value::RawValue;

use super::query::query_parameters;
use super::{PathParameter, json_response, topic_parameter};
use crate::Api;
use crate::error::ApiError;
use crate::responses::HistoryPage;

/// Returns kept messages of a topic, one page at a time.
///
/// A page has at most `limit` messages, and may be shorter: it ends when its messages together are
/// longer than `--max-message-bytes`, or where messages on the disk end. Only a page without `next` is the last one. A topic without
/// history has no messages and no `epoch`.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/topics/{topic}/messages", tag = "history",
    params(
        ("topic" = String, Path, description = "Topic, percent-encoded", example = "chat.42"),
        ("from" = Option<i64>, Query, description = "First message of the page: an offset, or a negative number that counts from the newest message, which is -1. Default: the oldest message, with `order=desc` the newest"),
        ("limit" = Option<u32>, Query, description = "Maximum messages of the page, default 100", minimum = 1, maximum = 1000),
        ("order" = Option<String>, Query, description = "`asc`, the default: the oldest message first; `desc`: the newest first"),
    ),
    responses(
        (status = 200, body = HistoryPage, description = "A page"),
        (status = 400, body = ApiError, description = "`invalid_topic`, `invalid_message`"),
        (status = 503, body = ApiError, description = "`unavailable`: messages that the store has, a disk or the cluster's broker, cannot be read; see `Retry-After`")
    )
))]
pub(crate) async fn history(
    State(api): State<Arc<Api>>,
    topic: PathParameter,
    RawQuery(query): RawQuery,
) -> Response {
    let read = async || {
        let topic = topic_parameter(topic)?;
        let request = request(&topic, query.as_deref())?;
        let history = api.node.history(&request).await?;
        // The node has encoded the messages, so each one is valid JSON.
        let messages =
            history.messages.iter().filter_map(|message| serde_json::from_str(message.data()).ok());
        let messages: Vec<&RawValue> = messages.collect();
        // Serialized here, because the page borrows the messages.
        Ok(json_response(Ok(HistoryPage::new(&topic, history.position, messages, history.next))))
    };
    read().await.unwrap_or_else(ApiError::into_response)
}

/// Parses `from`, `limit` and `order`, with the defaults, bounds and errors of the message
/// `history`.
fn request<'a>(topic: &'a str, query: Option<&str>) -> Result<HistoryRequest<'a>, ApiError> {
    let topic = Topic::parse(topic)?;
    let (mut from, mut limit, mut order) = (None, None, None);
    for (name, value) in query_parameters(query)? {
        match name.as_str() {
            "from" => from = Some(value),
            "limit" => limit = Some(value),
            "order" => order = Some(value),
            _ => {}
        }
    }
    Ok(HistoryRequest::from_texts(topic, from.as_deref(), limit.as_deref(), order.as_deref())?)
}

/// Empties the history of a topic.
///
/// The topic's stream continues in a new epoch, which its subscribers are told by a `gap`. Offsets
/// continue to rise. Also answers 204 if nothing was kept. With history on disk, the answer comes
/// when the disk has forgotten the messages.
#[cfg_attr(test, utoipa::path(
    delete, path = "/v1/topics/{topic}/messages", tag = "history",
    params(("topic" = String, Path, description = "Topic, percent-encoded", example = "chat.42")),
    responses(
        (status = 204, description = "Nothing is kept any more"),
        (status = 400, body = ApiError, description = "`invalid_topic`"),
        (status = 503, body = ApiError, description = "`unavailable`: the store of the history, a disk or the cluster's broker, takes nothing; see `Retry-After`")
    )
))]
pub(crate) async fn clear_history(State(api): State<Arc<Api>>, topic: PathParameter) -> Response {
    let clear = async || {
        let topic = topic_parameter(topic)?;
        api.node.clear_history(&Topic::parse(topic.as_str())?).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    clear().await.unwrap_or_else(ApiError::into_response)
}

#[cfg(test)]
mod tests {
    use deeperhub_node::{HistoryOrder, HistoryStart};

    use super::*;

    #[test]
    fn the_query_is_that_of_the_message() {
        let parsed = request("a", Some("from=-2&order=desc&limit=7&x=%31")).unwrap();
        assert_eq!(parsed.from, Some(HistoryStart::FromEnd(2)));
        assert_eq!((parsed.limit, parsed.order), (7, HistoryOrder::Descending));
        let parsed = request("a", None).unwrap();
        assert_eq!((parsed.from, parsed.limit, parsed.order), (None, 100, HistoryOrder::Ascending));
        assert_eq!(request("a", Some("limit=x&limit=%31")).unwrap().limit, 1, "the last one counts");
        for (query, field) in [
            ("from=", "from"),
            ("from=1.5", "from"),
            ("from=-0", "from"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=+1", "limit"),
            ("order=up", "order"),
            ("order", "order"),
            ("from=%zz", "query"),
        ] {
            let error = serde_json::to_value(request("a", Some(query)).unwrap_err()).unwrap();
            assert_eq!(error["error"]["code"], "invalid_message", "{query}");
            assert_eq!(error["error"]["field"], field, "{query}");
        }
        for topic in ["a.*", "a.>", "", "a..b", "$canary.0", "a b"] {
            let error = serde_json::to_value(request(topic, None).unwrap_err()).unwrap();
            assert_eq!(error["error"]["code"], "invalid_topic", "{topic}");
        }
    }
}
