//! Console page: a browser client to try the hub with.

use std::fmt::Write;

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

const PAGE_TEMPLATE: &str = include_str!("../assets/try.html");

/// Console page with this server's WebSocket URL.
#[derive(Debug)]
pub(crate) struct ConsolePage {
    html: String,
}

impl ConsolePage {
    pub(crate) fn new(websocket_url: Option<&str>) -> Self {
        Self {
            html: PAGE_TEMPLATE
                .replace("{{websocket_url}}", &escape_attribute(websocket_url.unwrap_or_default())),
        }
    }

    pub(crate) fn response(&self) -> Response {
        // Style and script are inline. The page loads nothing and may connect to any hub.
        let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
        ([(header::CONTENT_SECURITY_POLICY, policy)], Html(self.html.clone())).into_response()
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
        let page = ConsolePage::new(Some("ws://x/\"><script>"));
        assert!(page.html.contains("ws://x/&#34;&#62;&#60;script&#62;"));
        assert!(!page.html.contains("{{"));
    }
}
