//! The opening handshake as a client goes through it.

use tungstenite::handshake::derive_accept_key;

use crate::plan::Plan;

/// Longest answer that is read.
const MAX_RESPONSE_HEAD_BYTES: usize = 16 * 1024;

/// The request of every connection of a run, and what the server must answer.
#[derive(Debug)]
pub(crate) struct Handshake {
    request: Vec<u8>,
    accept: String,
    compression: bool,
}

/// What the server agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandshakeResponse {
    /// Length of the answer's head: frames follow.
    pub(crate) len: usize,
    /// What was agreed on compression; `None` when nothing is compressed.
    pub(crate) deflate: Option<DeflateAgreement>,
}

/// How the server compresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeflateAgreement {
    /// Whether it server_no_context_takeover each message before the next (`server_no_context_takeover`).
    pub(crate) server_no_context_takeover: bool,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// An HTTP status other than 101.
    Status(u16),
    /// An answer that is none of a WebSocket server.
    Invalid(&'static str),
}

impl Handshake {
    /// `nonce` is the key of the handshake; all connections of a run may have the same.
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
            // What we send is never compressed, so there is no context of ours to keep.
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

    /// Reads the answer; `None` when it is not complete.
    pub(crate) fn parse_response(&self, bytes: &[u8]) -> Result<Option<HandshakeResponse>, HandshakeError> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(bytes).map_err(|_| HandshakeError::Invalid("no HTTP answer"))?;
        match response.code {
            // The body says why, but no more than the status in a word.
            Some(code) if code != 101 => return Err(HandshakeError::Status(code)),
            _ => {}
        }
        let httparse::Status::Complete(len) = parsed else {
            return if bytes.len() > MAX_RESPONSE_HEAD_BYTES {
                Err(HandshakeError::Invalid("answer too long"))
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

    /// What an answer of `Sec-WebSocket-Extensions` agrees to; `None` when it is not what was offered.
    fn parse_extensions(&self, extensions: &str) -> Option<DeflateAgreement> {
        let mut parts = extensions.split(';').map(str::trim);
        if !self.compression || parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut deflate = DeflateAgreement { server_no_context_takeover: false };
        for part in parts {
            match part.split('=').next() {
                Some("server_no_context_takeover") => deflate.server_no_context_takeover = true,
                // Ours is the smaller part of the agreement, and we can read any window of the server's.
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
    fn the_request_is_one_that_the_server_takes() {
        let plan = plan::tests::plan("echo --token a.b --compression --url ws://localhost/ws?x=1");
        let handshake = Handshake::new(&plan, NONCE);
        let text = std::str::from_utf8(handshake.request()).unwrap();
        assert!(text.starts_with("GET /ws?x=1 HTTP/1.1\r\nHost: localhost\r\n"), "{text}");
        assert!(text.contains("\r\nAuthorization: Bearer a.b\r\n"), "{text}");
        assert!(text.contains("permessage-deflate"), "{text}");
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn an_answer_is_read_when_it_is_complete() {
        let whole = format!("{OK}\r\n");
        let answer = HandshakeResponse { len: whole.len(), deflate: None };
        check("echo", &format!("{whole}\x01x"), Ok(Some(answer)));
        for cut in 1..whole.len() {
            check("echo", &whole[..cut], Ok(None));
        }
    }

    #[test]
    fn compression_is_agreed_on_only_where_it_was_offered() {
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
        let refused = Err(HandshakeError::Invalid("extensions that were not offered"));
        check("echo", &with("permessage-deflate"), refused.clone());
        check("echo --compression", &with("x-shorten"), refused.clone());
        check("echo --compression", &with("permessage-deflate; x"), refused);
    }

    #[test]
    fn refusals_are_told_by_their_status() {
        check(
            "echo",
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n",
            Err(HandshakeError::Status(503)),
        );
        check("echo", "SSH-2.0-OpenSSH\r\n", Err(HandshakeError::Invalid("no HTTP answer")));
        let wrong = OK.replace("s3pP", "s4pP") + "\r\n";
        check("echo", &wrong, Err(HandshakeError::Invalid("Sec-WebSocket-Accept is missing or wrong")));
    }
}
