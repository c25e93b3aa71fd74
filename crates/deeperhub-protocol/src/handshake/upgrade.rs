//! Acceptance of an opening handshake.

use tungstenite::handshake::derive_accept_key;

use super::request::HttpVersion;
use super::{Refusal, Request};

/// Headers that must have a single value. A repeated value would be ambiguous.
const SINGLE_VALUE_HEADERS: [&str; 4] = ["host", "origin", "authorization", "sec-websocket-key"];

/// The value of `Sec-WebSocket-Accept`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptKey(String);

impl AcceptKey {
    /// Returns the value: 28 base64 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Request {
    /// Checks that this is an opening handshake and returns the value for `Sec-WebSocket-Accept`
    /// (RFC 6455 section 4.2.1). The caller checks origin, path, subprotocols, extensions and
    /// tokens.
    ///
    /// # Errors
    ///
    /// The request is checked in this order:
    ///
    /// 1. Returns 405 if the method is not GET.
    /// 2. Returns 426 if `Connection: upgrade` or `Upgrade: websocket` is missing, or if
    ///    `Sec-WebSocket-Version` is not 13.
    /// 3. Returns 400 in each of these cases:
    ///    - The request is HTTP/1.0 or has a body.
    ///    - `Host`, `Origin`, `Authorization` or `Sec-WebSocket-Key` is repeated or is not UTF-8.
    ///    - `Host` is missing.
    ///    - `Sec-WebSocket-Key` is missing, or is not 16 bytes in base64.
    pub fn check_upgrade(&self) -> Result<AcceptKey, Refusal> {
        if self.method() != "GET" {
            return Err(Refusal::method_not_allowed());
        }
        let has = |name, token: &str| self.list(name).any(|element| element.eq_ignore_ascii_case(token));
        // A gateway can join two header lines into `13, 13`.
        let mut versions = self.list("sec-websocket-version").peekable();
        let is_version_13 = versions.peek().is_some() && versions.all(|version| version == "13");
        if !has("connection", "upgrade") || !has("upgrade", "websocket") || !is_version_13 {
            return Err(Refusal::upgrade_required());
        }
        if self.version() == HttpVersion::Http10 {
            return Err(Refusal::bad_handshake("A WebSocket handshake requires HTTP/1.1."));
        }
        for name in SINGLE_VALUE_HEADERS {
            let mut values = self.raw_headers(name);
            if values.next().is_some_and(|value| std::str::from_utf8(value).is_err()) {
                return Err(Refusal::bad_handshake(format!("The header {name} is not text.")));
            }
            if values.next().is_some() {
                return Err(Refusal::bad_handshake(format!("The header {name} is repeated.")));
            }
        }
        // A request whose target is a URL needs `Host` too (RFC 9112 section 3.2).
        if self.header("host").is_none_or(str::is_empty) {
            return Err(Refusal::bad_handshake("The header host is missing."));
        }
        let announces_body = self.raw_headers("content-length").any(|length| !is_zero(length))
            || self.raw_headers("transfer-encoding").next().is_some();
        if announces_body {
            return Err(Refusal::bad_handshake("A handshake must not have a body."));
        }
        let key = self.header("sec-websocket-key");
        let key = key.ok_or_else(|| Refusal::bad_handshake("The header sec-websocket-key is missing."))?;
        if !is_16_bytes_in_base64(key) {
            return Err(Refusal::bad_handshake("The header sec-websocket-key is not 16 bytes in base64."));
        }
        Ok(AcceptKey(derive_accept_key(key.as_bytes())))
    }
}

/// Appends the `101 Switching Protocols` response to `out`. The next bytes of the connection are
/// WebSocket frames.
///
/// `subprotocol` is one of the client's offers. `extensions` is the value of
/// `Sec-WebSocket-Extensions`. If either is `None`, its header is omitted. Neither must contain a
/// line break; values from a [`Request`] never contain one.
pub fn write_accept(out: &mut Vec<u8>, key: &AcceptKey, subprotocol: Option<&str>, extensions: Option<&str>) {
    let mut push = |piece: &str| out.extend_from_slice(piece.as_bytes());
    push(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    push(key.as_str());
    if let Some(subprotocol) = subprotocol {
        push("\r\nSec-WebSocket-Protocol: ");
        push(subprotocol);
    }
    if let Some(extensions) = extensions {
        push("\r\nSec-WebSocket-Extensions: ");
        push(extensions);
    }
    push("\r\n\r\n");
}

/// Returns `true` if the value of a `Content-Length` header is zero. RFC 9110 section 8.6 allows
/// the forms `0` and `00`, and `0, 0` if a gateway joined two header lines.
fn is_zero(length: &[u8]) -> bool {
    length.split(|&byte| byte == b',').all(|element| {
        let digits = element.trim_ascii();
        !digits.is_empty() && digits.iter().all(|&digit| digit == b'0')
    })
}

/// Returns `true` if `key` is 22 base64 characters and two characters of padding. Does not check
/// the unused bits of the last character, because some clients set them to random values.
fn is_16_bytes_in_base64(key: &str) -> bool {
    let characters = key.strip_suffix("==").unwrap_or_default();
    characters.len() == 22 && characters.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::Parsed;

    const GOOD: &str = "GET /ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn check(head: &str) -> Result<String, (u16, String)> {
        let refused = |refusal: Refusal| (refusal.status, refusal.message.into_owned());
        let Parsed::Complete { request, .. } = Request::parse(head.as_bytes()).map_err(refused)? else {
            panic!("incomplete: {head}")
        };
        request.check_upgrade().map(|key| key.0).map_err(refused)
    }

    fn check_with(part: &str, replacement: &str) -> Result<String, (u16, String)> {
        assert!(GOOD.contains(part), "{part}");
        check(&GOOD.replacen(part, replacement, 1))
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        assert_eq!(check(GOOD), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned()));
    }

    #[test]
    fn header_tokens_ignore_case_and_can_be_in_several_lines() {
        for (part, replacement) in [
            ("Connection: Upgrade", "connection: keep-alive\r\nConnection: foo, uPGRADE"),
            ("Connection: Upgrade", "Connection:,upgrade,"),
            ("Upgrade: websocket", "upgrade: h2c, WebSocket"),
            ("GET /ws", "GET ws://example.com/ws"),
            ("Host: ", "Content-Length: 0\r\nHost:"),
            ("Host: ", "Content-Length: 00\r\nContent-Length: 0, 0\r\nHost:"),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13"),
            ("Version: 13", "Version: 13, 13"),
            ("Version: 13", "Version: ,13 ,"),
            ("Connection: Upgrade", "Connection:\r\nConnection: , ,Upgrade"),
            ("Upgrade: websocket", "Upgrade:\r\nUpgrade: , websocket,"),
            ("Host: ", "Sec-WebSocket-Protocol:\r\nSec-WebSocket-Protocol: , ,\r\nHost: "),
        ] {
            assert!(check_with(part, replacement).is_ok(), "{replacement}");
        }
    }

    #[test]
    fn refusals_have_their_status() {
        for (part, replacement, status) in [
            ("GET", "POST", 405),
            ("GET", "get", 405),
            ("Connection: Upgrade\r\n", "", 426),
            ("Connection: Upgrade", "Connection: close", 426),
            ("Upgrade: websocket\r\n", "", 426),
            ("Upgrade: websocket", "Upgrade: h2c", 426),
            ("Version: 13", "Version: 8", 426),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 8", 426),
            ("Version: 13", "Version: 13, 8", 426),
            ("Version: 13", "Version: ,", 426),
            ("Version: 13", "Version:", 426),
            ("Sec-WebSocket-Version: 13\r\n", "", 426),
            ("HTTP/1.1", "HTTP/1.0", 400),
            ("Host: example.com\r\n", "", 400),
            ("Host: example.com", "Host:", 400),
            ("Host: example.com", "Host: a\r\nHost: a", 400),
            ("Host", "Origin: http://a\r\nOrigin: http://b\r\nHost", 400),
            ("Host", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\nHost", 400),
            ("Host", "Content-Length: 5\r\nHost", 400),
            ("Host", "Content-Length: x\r\nHost", 400),
            ("Host", "Content-Length:\r\nHost", 400),
            ("Host", "Content-Length: 0, 5\r\nHost", 400),
            ("Host", "Content-Length: \u{1}\r\nHost", 400),
            ("Host", "Transfer-Encoding: \u{e4}\r\nHost", 400),
            ("Host", "Content-Length: \u{e4}\r\nHost", 400),
            ("Host", "Transfer-Encoding: chunked\r\nHost", 400),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j====", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZSE=", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBs!SBub25jZQ==", 400),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key", 400),
        ] {
            let result = check_with(part, replacement);
            assert_eq!(result.map_err(|(status, _)| status), Err(status), "{replacement:?} for {part:?}");
        }
    }

    #[test]
    fn the_method_is_checked_first_and_the_upgrade_second() {
        assert_eq!(check("POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n").unwrap_err().0, 405);
        assert_eq!(check("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n").unwrap_err().0, 426);
    }

    #[test]
    fn single_value_headers_must_be_utf8() {
        for name in SINGLE_VALUE_HEADERS {
            let is_other = |line: &&str| !line.to_lowercase().starts_with(name) && *line != "\r\n";
            let mut head = GOOD.split_inclusive("\r\n").filter(is_other).collect::<String>().into_bytes();
            head.extend_from_slice(&[name.as_bytes(), b": \xff\r\n\r\n"].concat());
            let Ok(Parsed::Complete { request, .. }) = Request::parse(&head) else { panic!("{name}") };
            let refusal = request.check_upgrade().unwrap_err();
            assert_eq!(refusal.to_string(), format!("400 bad_handshake: The header {name} is not text."));
        }
    }

    #[test]
    fn the_response_names_the_subprotocol_and_extensions() {
        let key = AcceptKey("KEY".to_owned());
        let written = |subprotocol, extensions| {
            let mut out = Vec::new();
            write_accept(&mut out, &key, subprotocol, extensions);
            String::from_utf8(out).unwrap()
        };
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: KEY\r\n";
        assert_eq!(written(None, None), format!("{head}\r\n"));
        assert_eq!(
            written(Some("deeperhub.v1.json"), Some("permessage-deflate")),
            format!(
                "{head}Sec-WebSocket-Protocol: deeperhub.v1.json\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
            )
        );
    }
}
