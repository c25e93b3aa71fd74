//! Parses arbitrary bytes as a request: nothing panics, the result does not depend on read sizes or
//! on bytes after the head, and every response is HTTP.

#![no_main]

use deeperhub_protocol::handshake::{MAX_HEAD_BYTES, Parsed, Refusal, Request, write_accept};
use libfuzzer_sys::fuzz_target;
use tungstenite::handshake::derive_accept_key;

fuzz_target!(|bytes: &[u8]| {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    match Request::parse(bytes) {
        Ok(Parsed::Complete { request, head_bytes }) => {
            assert!(head_bytes <= bytes.len().min(MAX_HEAD_BYTES));
            for cut in [head_bytes * usize::from(cut) / 256, head_bytes - 1] {
                assert!(matches!(Request::parse(&bytes[..cut]), Ok(Parsed::Partial)), "the first {cut}");
            }
            read(&request);
        }
        Ok(Parsed::Partial) => assert!(bytes.len() < MAX_HEAD_BYTES),
        Err(refusal) => answered(&refusal),
    }
});

fn read(request: &Request) {
    assert!(!request.method().is_empty() && !request.path().is_empty());
    assert!(!request.path().contains('?'));
    let _ = (request.origin(), request.query_value("token"));
    assert!(request.subprotocols().all(|name| !name.contains(',') && !name.is_empty()));
    match request.check_upgrade() {
        Ok(key) => {
            assert!(request.host().is_some_and(|host| !host.is_empty()));
            let sent = request.header("Sec-WebSocket-Key").expect("accepted without a key");
            assert_eq!(key.as_str(), derive_accept_key(sent.as_bytes()));
            let mut out = Vec::new();
            write_accept(&mut out, &key, request.subprotocols().next(), None);
            is_answer(&out);
        }
        Err(refusal) => answered(&refusal),
    }
}

fn answered(refusal: &Refusal) {
    assert!(matches!(refusal.status, 400 | 405 | 426), "{refusal}");
    let mut out = Vec::new();
    refusal.write(&mut out);
    is_answer(&out);
}

fn is_answer(bytes: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let head = response.parse(bytes).expect("an answer is HTTP");
    assert!(head.is_complete());
}
