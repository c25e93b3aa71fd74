//! The TypeScript client as a module for web pages.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Path of the module.
pub(crate) const PATH: &str = "/deeperhub.js";

/// Copy of `clients/typescript/dist/deeperhub.js`, which is built from the sources beside it.
const SCRIPT: &str = include_str!("../assets/deeperhub.js");

/// Entity tag of [`SCRIPT`]: its FNV-1a hash.
const HASH: u64 = {
    let bytes = SCRIPT.as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0100_0000_01b3);
        index += 1;
    }
    hash
};

/// Returns the TypeScript client, an ES module for web pages of any origin.
#[cfg_attr(test, utoipa::path(get, path = "/deeperhub.js", tag = "operations", operation_id = "client_script",
    responses(
        (status = 200, body = String, content_type = "text/javascript", description = "The module, with an `ETag`"),
        (status = 304, description = "The caller has it: its `If-None-Match` names the `ETag`"))))]
pub(crate) async fn client_script(headers: HeaderMap) -> Response {
    let tag = format!("\"{HASH:016x}\"");
    let matches = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| {
            value.split(',').map(str::trim).any(|given| given == "*" || given.trim_start_matches("W/") == tag)
        })
    };
    let is_known = headers.get_all(header::IF_NONE_MATCH).iter().any(matches);
    let common = [
        // Browsers ask each time, and get 304: after an upgrade, pages have the new client.
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (header::ETAG, tag),
        // Pages are often on another origin, and the module holds no data.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*".to_owned()),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "cross-origin".to_owned()),
    ];
    if is_known {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn status(if_none_match: &[&str]) -> StatusCode {
        let mut headers = HeaderMap::new();
        for value in if_none_match {
            headers.append(header::IF_NONE_MATCH, value.parse().unwrap());
        }
        client_script(headers).await.status()
    }

    #[tokio::test]
    async fn a_caller_that_has_the_module_gets_304() {
        let response = client_script(HeaderMap::new()).await;
        let tag = response.headers()[header::ETAG].to_str().unwrap().to_owned();
        for known in [
            &[tag.as_str()][..],
            &["*"],
            &[&format!("W/{tag}")],
            &[&format!("\"x\", {tag}")],
            &["\"x\"", &tag],
        ] {
            assert_eq!(status(known).await, StatusCode::NOT_MODIFIED, "{known:?}");
        }
        for other in [&[][..], &["\"x\""], &["", "W/"]] {
            assert_eq!(status(other).await, StatusCode::OK, "{other:?}");
        }
    }

    #[test]
    fn the_module_is_the_committed_build() {
        let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../clients/typescript/dist/deeperhub.js");
        // A packaged crate has no clients beside it.
        if let Ok(built) = std::fs::read_to_string(built) {
            assert_eq!(SCRIPT, built, "run npm run build in clients/typescript");
        }
        assert!(SCRIPT.contains("export{"));
    }
}
