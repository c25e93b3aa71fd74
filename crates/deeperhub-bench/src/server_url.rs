//! The server's WebSocket URL.

use std::fmt;
use std::str::FromStr;

use deeperhub_args::{Address, Host};

/// A parsed `ws://` or `wss://` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl {
    /// `true` for `wss://`.
    pub(crate) tls: bool,
    /// Host and port to connect to.
    pub(crate) address: Address,
    /// Path and query of the request.
    pub(crate) path: String,
}

impl ServerUrl {
    /// Returns the `Host` header, without the scheme's default port.
    pub(crate) fn host_header(&self) -> String {
        let text = self.address.to_string();
        let default = format!(":{}", default_port(self.tls));
        text.strip_suffix(&default).map(str::to_owned).unwrap_or(text)
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || "expected a WebSocket URL such as ws://127.0.0.1:8080/ or wss://hub.example.com/ws".to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let tls = match scheme {
            "ws" => false,
            "wss" => true,
            _ => return Err(expected()),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let has_port =
            authority.rsplit_once(':').is_some_and(|(host, _)| !host.starts_with('[') || host.ends_with(']'));
        let address: Address = if has_port {
            authority.parse().map_err(|_| expected())?
        } else {
            let host: Host = authority.parse().map_err(|_| expected())?;
            Address { host, port: default_port(tls) }
        };
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&byte);
        if address.port == 0 || !path.bytes().all(is_allowed) {
            return Err(expected());
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { tls, address, path })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The query may contain a token, so it is left out.
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{path}", if self.tls { "wss" } else { "ws" }, self.host_header())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        for (text, tls, address, path, host) in [
            ("ws://127.0.0.1:8080", false, "127.0.0.1:8080", "/", "127.0.0.1:8080"),
            ("ws://localhost/ws", false, "localhost:80", "/ws", "localhost"),
            ("wss://hub.example.com", true, "hub.example.com:443", "/", "hub.example.com"),
            ("wss://hub.example.com:443/a?b=c", true, "hub.example.com:443", "/a?b=c", "hub.example.com"),
            ("ws://[::1]:80?x", false, "[::1]:80", "/?x", "[::1]"),
            ("ws://[::1]", false, "[::1]:80", "/", "[::1]"),
        ] {
            let url: ServerUrl = text.parse().unwrap();
            assert_eq!((url.tls, url.path.as_str()), (tls, path), "{text}");
            assert_eq!(
                (url.address.to_string().as_str(), url.host_header().as_str()),
                (address, host),
                "{text}"
            );
        }
    }

    #[test]
    fn invalid_urls_are_rejected_with_an_example() {
        for text in [
            "",
            "127.0.0.1:8080",
            "http://localhost",
            "ws:/localhost",
            "ws://",
            "ws://:8080",
            "ws://a b/",
            "ws://localhost:0/",
            "ws://localhost:99999/",
            "ws://me:pw@localhost/",
            "ws://localhost/#x",
            "ws://::1/",
        ] {
            let parsed = text.parse::<ServerUrl>();
            assert!(parsed.is_err_and(|expected| expected.contains("ws://127.0.0.1:8080/")), "{text}");
        }
    }

    #[test]
    fn a_query_is_not_shown() {
        let url: ServerUrl = "ws://localhost/ws?token=abc".parse().unwrap();
        assert_eq!(url.to_string(), "ws://localhost/ws");
    }
}
