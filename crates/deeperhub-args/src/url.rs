//! HTTP URLs and URL paths.

use std::fmt;
use std::str::FromStr;

/// An `http` or `https` URL with a host, an optional port and an optional path.
///
/// URLs with user information, a query or a fragment are rejected, because the URLs of OTLP
/// collectors have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// Scheme, host and port.
    origin: String,
    port: Option<u16>,
    /// The path without a slash at its end; empty for the path `/`.
    path: String,
}

impl HttpUrl {
    /// Returns the port, or `None` if the URL has no port.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns this URL with `path` appended to its path. `path` must start with a slash.
    pub fn below(&self, path: &str) -> Self {
        Self { path: format!("{}{path}", self.path), ..self.clone() }
    }
}

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected the URL of a collector, such as http://localhost:4317";
        let parse = || {
            let uri: http::Uri = text.parse().ok()?;
            let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
            let has_extra_parts =
                authority.as_str().contains('@') || uri.query().is_some() || text.contains('#');
            if !["http", "https"].contains(&scheme) || has_extra_parts || authority.host().is_empty() {
                return None;
            }
            // `http::Uri` accepts invalid ports, so this code parses the port itself.
            let port = match authority.as_str().strip_prefix(authority.host()) {
                Some("") => None,
                Some(rest) => Some(rest.strip_prefix(':')?.parse().ok()?),
                None => return None,
            };
            let path = uri.path().trim_end_matches('/').to_owned();
            Some(Self { origin: format!("{scheme}://{authority}"), port, path })
        };
        parse().ok_or_else(|| EXPECTED.to_owned())
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

/// A URL path, such as `/` or `/ws`, without query and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPath(pub String);

impl FromStr for UrlPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte);
        if text.starts_with('/') && text.bytes().all(is_allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected a path that starts with /, such as /ws, percent-encoded and without ? or #"
                .to_owned())
        }
    }
}

impl fmt::Display for UrlPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn http_urls_have_a_scheme_a_host_and_a_path() {
        for (input, expected) in [
            ("http://localhost:4317", Some("http://localhost:4317")),
            ("https://otel.example.com", Some("https://otel.example.com")),
            ("http://[::1]:4318/", Some("http://[::1]:4318")),
            ("http://c:1/base/", Some("http://c:1/base")),
            ("localhost:4317", None),
            ("grpc://localhost:4317", None),
            ("http://", None),
            ("http://a:port", None),
            ("http://a:99999", None),
            ("http://user:pw@a", None),
            ("http://a/?x=1", None),
            ("", None),
        ] {
            check::<HttpUrl>(input, expected);
        }
        assert_eq!(
            "http://c:1/base".parse::<HttpUrl>().map(|url| url.below("/v1").to_string()),
            Ok("http://c:1/base/v1".to_owned())
        );
    }

    #[test]
    fn paths_start_with_a_slash() {
        for (input, expected) in [
            ("/", Some("/")),
            ("/ws/v1", Some("/ws/v1")),
            ("/a%20b", Some("/a%20b")),
            ("", None),
            ("ws", None),
            ("/a?b", None),
            ("/a b", None),
            ("/a#b", None),
            ("/é", None),
        ] {
            check::<UrlPath>(input, expected);
        }
    }
}
