//! Parameters in the query of a URL.
//!
//! This module replaces axum's `Query`, which silently replaces invalid percent-encoding and
//! invalid UTF-8, and whose rejections do not name the parameter at fault. Here every error is
//! `invalid_message` with a `field`. Unknown parameters are ignored. If a parameter occurs several
//! times, its last value counts.

use crate::error::ApiError;

/// Maximum and default number of items on a page.
const MAX_PAGE_ITEMS: usize = 1000;
const DEFAULT_PAGE_ITEMS: usize = 100;

/// Nodes that a list or a count covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Node,
    Cluster,
}

/// Parses `scope`: `node`, the default, or `cluster`.
pub(super) fn scope(query: Option<&str>) -> Result<Scope, ApiError> {
    let mut scope = Scope::Node;
    for (name, value) in query_parameters(query)? {
        if name == "scope" {
            scope = match value.as_str() {
                "node" => Scope::Node,
                "cluster" => Scope::Cluster,
                _ => return Err(ApiError::parameter("scope", "invalid scope; expected node or cluster")),
            };
        }
    }
    Ok(scope)
}

/// Parses `limit` and `cursor`.
pub(super) fn paging(query: Option<&str>) -> Result<(usize, Option<String>), ApiError> {
    let (mut limit, mut cursor) = (DEFAULT_PAGE_ITEMS, None);
    for (name, value) in query_parameters(query)? {
        match name.as_str() {
            "limit" => {
                let invalid = || {
                    ApiError::parameter(
                        "limit",
                        format!("invalid limit; expected a number from 1 to {MAX_PAGE_ITEMS}"),
                    )
                };
                limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=MAX_PAGE_ITEMS).contains(limit))
                    .ok_or_else(invalid)?;
            }
            "cursor" => cursor = Some(value),
            _ => {}
        }
    }
    Ok((limit, cursor))
}

/// Returns the last value of a parameter that is not empty.
pub(super) fn text_parameter(query: Option<&str>, name: &str) -> Result<Option<String>, ApiError> {
    let found = query_parameters(query)?.into_iter().rfind(|(given, _)| given == name);
    Ok(found.map(|(_, value)| value).filter(|value| !value.is_empty()))
}

/// Returns the names and values of a query, decoded.
pub(super) fn query_parameters(query: Option<&str>) -> Result<Vec<(String, String)>, ApiError> {
    let mut pairs = Vec::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text| {
            decode(text)
                .ok_or_else(|| ApiError::parameter("query", "the query is not valid percent-encoded UTF-8"))
        };
        pairs.push((decode(name)?, decode(value)?));
    }
    Ok(pairs)
}

/// Decodes percent-encoding, and `+` as a space. Returns `None` if the encoding is invalid, or if
/// the result is not UTF-8.
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
    fn a_scope_is_node_or_cluster() {
        for (query, expected) in [
            (None, Some(Scope::Node)),
            (Some("scope=node"), Some(Scope::Node)),
            (Some("limit=1&scope=cluster"), Some(Scope::Cluster)),
            (Some("scope=all"), None),
        ] {
            assert_eq!(scope(query).ok(), expected, "{query:?}");
        }
    }

    #[test]
    fn limits_are_checked() {
        assert_eq!(paging(None).unwrap(), (DEFAULT_PAGE_ITEMS, None));
        assert_eq!(paging(Some("limit=7&cursor=0-1&x=y")).unwrap(), (7, Some("0-1".to_owned())));
        assert_eq!(paging(Some("limit=5&limit=7")).unwrap().0, 7, "the last one counts");
        for bad in ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit="] {
            assert!(paging(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_name_the_parameter_at_fault() {
        for (query, field) in
            [("limit=x", "limit"), ("scope=all", "scope"), ("scope=%ff", "query"), ("%=1", "query")]
        {
            let error = paging(Some(query)).err().or_else(|| scope(Some(query)).err()).unwrap();
            let body: serde_json::Value = serde_json::to_value(&error).unwrap();
            assert_eq!(error.status(), 400, "{query}");
            assert_eq!(body["error"]["code"], "invalid_message", "{query}");
            assert_eq!(body["error"]["field"], field, "{query}");
        }
    }
}
