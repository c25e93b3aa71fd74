//! The calls.

mod clients;
mod events;
mod messages;
mod operations;
mod topics;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use deeperhub_node::Delivered;
use utoipa::OpenApi;

pub(crate) use clients::{client, clients, disconnect, disconnect_user};
pub(crate) use events::events;
pub(crate) use messages::{broadcast, publish, send_to_client, send_to_user};
pub(crate) use operations::{description, live, metrics, ready};
pub(crate) use topics::{topic, topics};

use crate::Api;
use crate::error::ApiError;

/// The most items of a page, and how many there are when none is asked for.
const MAX_LIMIT: usize = 1000;
const DEFAULT_LIMIT: usize = 100;

#[derive(OpenApi)]
#[openapi(
    info(title = "deeperhub-ws server API", description = "What backends ask of a hub node."),
    paths(
        messages::publish,
        messages::send_to_client,
        messages::send_to_user,
        messages::broadcast,
        clients::clients,
        clients::client,
        clients::disconnect,
        clients::disconnect_user,
        topics::topics,
        topics::topic,
        events::events,
        operations::metrics,
        operations::live,
        operations::ready,
        operations::description,
    )
)]
struct Description;

/// The OpenAPI 3.1 description of this API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

/// The page to try the hub with.
pub(crate) async fn page(State(api): State<Arc<Api>>) -> Response {
    api.page.response()
}

type PathText = Result<Path<String>, PathRejection>;
type Body = Result<Bytes, BytesRejection>;

/// The one parameter of a path, percent-decoded.
fn path(path: PathText) -> Result<String, ApiError> {
    match path {
        Ok(Path(text)) => Ok(text),
        Err(_) => Err(ApiError::parameter("the path is not UTF-8 behind its percent-encoding")),
    }
}

/// A body as text.
fn text(body: &Body) -> Result<&str, ApiError> {
    match body {
        Ok(bytes) => std::str::from_utf8(bytes)
            .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", "the body is not UTF-8")),
        Err(rejection) => match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "message_too_big",
                "the body is larger than a message may be",
            )),
            status => Err(ApiError::new(status, "invalid_message", "the body could not be read")),
        },
    }
}

/// `limit` and `cursor` of a query.
fn paging(query: Option<&str>) -> Result<(usize, Option<String>), ApiError> {
    let (mut limit, mut cursor) = (DEFAULT_LIMIT, None);
    for (name, value) in pairs(query)? {
        match name.as_str() {
            "limit" => {
                let bad = || ApiError::parameter(format!("limit is a number from 1 to {MAX_LIMIT}"));
                limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit)).ok_or_else(bad)?;
            }
            "cursor" => cursor = Some(value),
            _ => {}
        }
    }
    Ok((limit, cursor))
}

/// Names and values of a query, decoded.
fn pairs(query: Option<&str>) -> Result<Vec<(String, String)>, ApiError> {
    let mut pairs = Vec::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text| decode(text).ok_or_else(|| ApiError::parameter("the query is not well encoded"));
        pairs.push((decode(name)?, decode(value)?));
    }
    Ok(pairs)
}

/// Percent-decoding, `+` as a space. `None`: broken, or not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

/// What a publish, a send or a disconnect reached.
fn told(delivered: Delivered, what: &str) -> serde_json::Value {
    let mut told = serde_json::Map::new();
    told.insert(what.to_owned(), delivered.count.into());
    if delivered.cluster_unavailable {
        told.insert("cluster".to_owned(), "unavailable".into());
    }
    told.into()
}

/// An answer that is JSON, or an error.
fn answer(result: Result<serde_json::Value, ApiError>) -> Response {
    match result {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        assert_eq!(decode("a%2Fb+c%C3%A9").as_deref(), Some("a/b cé"));
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn limits_are_checked() {
        assert_eq!(paging(None).unwrap(), (DEFAULT_LIMIT, None));
        assert_eq!(paging(Some("limit=7&cursor=0-1&x=y")).unwrap(), (7, Some("0-1".to_owned())));
        for bad in ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit="] {
            assert!(paging(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_description_is_the_committed_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let made = openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert_eq!(made, committed, "UPDATE_SNAPSHOTS=1 writes it anew");
    }
}
