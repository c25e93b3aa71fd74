//! The dashboard: static files in the program, which call this API from the browser.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;

const PAGE_TEMPLATE: &str = include_str!("../assets/dashboard/index.html");

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($name:literal: $content_type:expr),* $(,)?) => {
        /// Files below `/dashboard/`, with their types.
        const FILES: &[(&str, &str, &str)] =
            &[$(($name, $content_type, include_str!(concat!("../assets/dashboard/", $name)))),*];
    };
}

files! {
    "actions.js": SCRIPT,
    "api.js": SCRIPT,
    "chart.js": SCRIPT,
    "client.js": SCRIPT,
    "clients.js": SCRIPT,
    "dom.js": SCRIPT,
    "format.js": SCRIPT,
    "json.js": SCRIPT,
    "limit_groups.js": SCRIPT,
    "limits.js": SCRIPT,
    "main.js": SCRIPT,
    "metrics.js": SCRIPT,
    "nodes.js": SCRIPT,
    "overview.js": SCRIPT,
    "poller.js": SCRIPT,
    "samples.js": SCRIPT,
    "search_list.js": SCRIPT,
    "tail.js": SCRIPT,
    "topic.js": SCRIPT,
    "topics.js": SCRIPT,
    "try.js": SCRIPT,
    "warnings.js": SCRIPT,
    "wire.js": SCRIPT,
    "icon.svg": "image/svg+xml",
    "style.css": "text/css; charset=utf-8",
}

/// Headers of every file. Scripts and styles come from this server alone, and no text becomes HTML
/// (Trusted Types). The page may connect to any hub, because its address depends on the network.
const HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    // Browsers keep the files and ask whether they changed.
    (header::CACHE_CONTROL, "no-cache"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Returns `true` if a path is of a file, which holds no data and needs no key.
pub(crate) fn is_file(path: &str) -> bool {
    path == "/" || path.starts_with("/dashboard/")
}

/// The files, with this server's WebSocket URL in the page.
#[derive(Debug)]
pub(crate) struct Dashboard {
    page: File,
    files: Vec<(&'static str, File)>,
}

#[derive(Debug)]
struct File {
    content_type: &'static str,
    body: Bytes,
    entity_tag: HeaderValue,
}

impl Dashboard {
    pub(crate) fn new(websocket_url: Option<&str>) -> Self {
        let page =
            PAGE_TEMPLATE.replace("{{websocket_url}}", &escape_attribute(websocket_url.unwrap_or_default()));
        let file = |&(name, content_type, text): &(&'static str, _, &'static str)| {
            (name, File::new(content_type, Bytes::from_static(text.as_bytes())))
        };
        Self {
            page: File::new("text/html; charset=utf-8", page.into()),
            files: FILES.iter().map(file).collect(),
        }
    }

    /// Returns the page.
    pub(crate) fn page(&self, request: &HeaderMap) -> Response {
        self.page.response(request)
    }

    /// Returns a file below `/dashboard/`.
    pub(crate) fn file(&self, name: &str, request: &HeaderMap) -> Response {
        match self.files.iter().find(|(known, _)| *known == name) {
            Some((_, file)) => file.response(request),
            None => ApiError::not_found().into_response(),
        }
    }
}

impl File {
    fn new(content_type: &'static str, body: Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        // A tag of hexadecimal digits is always a valid value.
        let entity_tag = HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish()))
            .unwrap_or(HeaderValue::from_static("\"0\""));
        Self { content_type, body, entity_tag }
    }

    fn response(&self, request: &HeaderMap) -> Response {
        let is_known = |tags: &HeaderValue| {
            let tags = tags.to_str().unwrap_or_default();
            tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == self.entity_tag)
        };
        let mut response = if request.get_all(header::IF_NONE_MATCH).iter().any(is_known) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, self.content_type)], self.body.clone()).into_response()
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.entity_tag.clone());
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Escapes text for an HTML attribute in double quotes.
fn escape_attribute(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, character| {
        match character {
            '&' | '<' | '>' | '"' | '\'' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "&#{};", u32::from(character));
            }
            other => out.push(other),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_cannot_break_out_of_its_attribute() {
        let dashboard = Dashboard::new(Some("ws://x/\"><script>"));
        let page = std::str::from_utf8(&dashboard.page.body).unwrap();
        assert!(page.contains("ws://x/&#34;&#62;&#60;script&#62;"));
        assert!(!page.contains("{{"));
    }

    #[test]
    fn a_known_file_is_not_sent_again() {
        let dashboard = Dashboard::new(None);
        let tag = dashboard.file("main.js", &HeaderMap::new()).headers()[header::ETAG].clone();
        for (tags, status) in [
            (tag.to_str().unwrap().to_owned(), StatusCode::NOT_MODIFIED),
            (format!("\"x\", W/{}", tag.to_str().unwrap()), StatusCode::NOT_MODIFIED),
            ("\"x\"".to_owned(), StatusCode::OK),
        ] {
            let request = HeaderMap::from_iter([(header::IF_NONE_MATCH, tags.parse().unwrap())]);
            assert_eq!(dashboard.file("main.js", &request).status(), status, "{tags}");
        }
        assert_eq!(dashboard.file("../lib.rs", &HeaderMap::new()).status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/dashboard");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_listed = name == "index.html" || FILES.iter().any(|(listed, ..)| *listed == name);
            assert!(is_listed, "{name} is not in the list of files");
        }
    }

    #[test]
    fn scripts_and_styles_are_in_files() {
        // The policy would block them.
        for forbidden in ["<style", " style=", " onclick=", " onsubmit="] {
            assert!(!PAGE_TEMPLATE.contains(forbidden), "{forbidden}");
        }
        for (name, _, text) in FILES {
            for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!text.contains(forbidden), "{name} has {forbidden}");
            }
        }
    }
}
