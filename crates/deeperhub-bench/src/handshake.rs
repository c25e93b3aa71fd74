//! The client's side of the opening handshake.

use tungstenite::handshake::derive_accept_key;

use crate::plan::Plan;

/// Maximum bytes of a response head. Limits memory use if the server is not a WebSocket server.
const MAX_RESPONSE_HEAD_BYTES: usize = 16 * 1024;

/// The request of all connections of a run, and the expected response.
#[derive(Debug)]
pub(crate) struct Handshake {
    request: Vec<u8>,
    accept: String,
    compression: bool,
}

/// The server's response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandshakeResponse {
    /// Length of the response head. Frames follow it.
    pub(crate) len: usize,
    /// Negotiated compression, or `None` without compression.
    pub(crate) deflate: Option<DeflateAgreement>,
}

/// The negotiated parameters of permessage-deflate (RFC 7692).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeflateAgreement {
    /// `true` if the server compresses each message on its own.
    pub(crate) server_no_context_takeover: bool,
}

/// The reason why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// An HTTP status other than 101.
    Status(u16),
    /// A response that violates RFC 6455.
    Invalid(&'static str),
}

impl Handshake {
    /// Creates the request. All connections share `nonce`, the `Sec-WebSocket-Key`.
    pub(crate) fn new(plan: &Plan, nonce: &str) -> Self {
        let url = &plan.url;
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: deeperhub.v1.json\r\n",
            url.path,
            url.host_header(),
        );
        if plan.compression {
            // The load generator does not compress, so the server needs no context to decompress
            // messages.
            request.push_str("Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n");
        }
        if let Some(token) = &plan.token {
            request.push_str("Authorization: Bearer ");
            request.push_str(&token.0);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        Self {
            request: request.into_bytes(),
            accept: derive_accept_key(nonce.as_bytes()),
            compression: plan.compression,
        }
    }

    pub(crate) fn request(&self) -> &[u8] {
        &self.request
    }

    /// Parses the response. Returns `None` if the response is incomplete.
    pub(crate) fn parse_response(&self, bytes: &[u8]) -> Result<Option<HandshakeResponse>, HandshakeError> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(bytes).map_err(|_| HandshakeError::Invalid("not an HTTP response"))?;
        match response.code {
            // The report needs the status only, so the rest of the response is not awaited.
            Some(code) if code != 101 => return Err(HandshakeError::Status(code)),
            _ => {}
        }
        let httparse::Status::Complete(len) = parsed else {
            return if bytes.len() > MAX_RESPONSE_HEAD_BYTES {
                Err(HandshakeError::Invalid("response head too long"))
            } else {
                Ok(None)
            };
        };
        let value = |name: &str| {
            let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok().map(str::trim)
        };
        if value("sec-websocket-accept") != Some(&self.accept) {
            return Err(HandshakeError::Invalid("Sec-WebSocket-Accept is missing or wrong"));
        }
        let deflate = match value("sec-websocket-extensions") {
            None | Some("") => None,
            Some(extensions) => Some(
                self.parse_extensions(extensions)
                    .ok_or(HandshakeError::Invalid("extensions that were not offered"))?,
            ),
        };
        Ok(Some(HandshakeResponse { len, deflate }))
    }

    /// Parses `Sec-WebSocket-Extensions`. Returns `None` if the header contains an extension or a
    /// parameter that was not offered.
    fn parse_extensions(&self, extensions: &str) -> Option<DeflateAgreement> {
        let mut parts = extensions.split(';').map(str::trim);
        if !self.compression || parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut deflate = DeflateAgreement { server_no_context_takeover: false };
        for part in parts {
            match part.split('=').next() {
                Some("server_no_context_takeover") => deflate.server_no_context_takeover = true,
                // Messages are sent uncompressed, and the inflater reads any window size.
                Some("client_no_context_takeover" | "server_max_window_bits") => {}
                _ => return None,
            }
        }
        Some(deflate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    const NONCE: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const OK: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

    fn check(flags: &str, answer: &str, expected: Result<Option<HandshakeResponse>, HandshakeError>) {
        let handshake = Handshake::new(&plan::tests::plan(flags), NONCE);
        assert_eq!(handshake.parse_response(answer.as_bytes()), expected, "{answer}");
    }

    #[test]
    fn the_request_has_path_token_and_extensions() {
        let plan = plan::tests::plan("echo --token a.b --compression --url ws://localhost/ws?x=1");
        let handshake = Handshake::new(&plan, NONCE);
        let text = std::str::from_utf8(handshake.request()).unwrap();
        assert!(text.starts_with("GET /ws?x=1 HTTP/1.1\r\nHost: localhost\r\n"), "{text}");
        assert!(text.contains("\r\nAuthorization: Bearer a.b\r\n"), "{text}");
        assert!(text.contains("permessage-deflate"), "{text}");
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn an_incomplete_response_is_not_parsed() {
        let whole = format!("{OK}\r\n");
        let answer = HandshakeResponse { len: whole.len(), deflate: None };
        check("echo", &format!("{whole}\x01x"), Ok(Some(answer)));
        for cut in 1..whole.len() {
            check("echo", &whole[..cut], Ok(None));
        }
    }

    #[test]
    fn compression_is_negotiated_only_if_offered() {
        let with = |extensions: &str| format!("{OK}Sec-WebSocket-Extensions: {extensions}\r\n\r\n");
        let agreed = |answer: &str, server_no_context_takeover| {
            Ok(Some(HandshakeResponse {
                len: answer.len(),
                deflate: Some(DeflateAgreement { server_no_context_takeover }),
            }))
        };
        let answer = with("permessage-deflate");
        check("echo --compression", &answer, agreed(&answer, false));
        let answer = with("permessage-deflate; server_no_context_takeover; server_max_window_bits=12");
        check("echo --compression", &answer, agreed(&answer, true));
        let not_offered = Err(HandshakeError::Invalid("extensions that were not offered"));
        check("echo", &with("permessage-deflate"), not_offered.clone());
        check("echo --compression", &with("x-shorten"), not_offered.clone());
        check("echo --compression", &with("permessage-deflate; x"), not_offered);
    }

    #[test]
    fn failed_handshakes_have_a_status_or_a_reason() {
        check(
            "echo",
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n",
            Err(HandshakeError::Status(503)),
        );
        check("echo", "SSH-2.0-OpenSSH\r\n", Err(HandshakeError::Invalid("not an HTTP response")));
        let wrong = OK.replace("s3pP", "s4pP") + "\r\n";
        check("echo", &wrong, Err(HandshakeError::Invalid("Sec-WebSocket-Accept is missing or wrong")));
    }
}
