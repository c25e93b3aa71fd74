//! Negotiates arbitrary bytes as `Sec-WebSocket-Extensions` headers: nothing panics, several lines
//! count as one list, and every response is valid for an offer of exactly that response.

#![no_main]

use deeperhub_protocol::deflate::{Config, negotiate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&takes_over, bytes)) = bytes.split_first() else { return };
    let mut config = Config::default();
    config.client_context_takeover = takes_over % 2 == 1;
    let result = negotiate(&config, bytes.split(|&byte| byte == b'\n'));

    // A line break is not part of a list; replaced with a comma, the lines form one list.
    let is_quoted = bytes.contains(&b'"');
    if !is_quoted {
        let joined: Vec<u8> = bytes.iter().map(|&byte| if byte == b'\n' { b',' } else { byte }).collect();
        assert_eq!(negotiate(&config, [&joined[..]]), result);
    }
    match result {
        Ok(None) => {}
        Ok(Some(params)) => {
            let answer = params.header_value();
            assert!(answer.starts_with("permessage-deflate; server_no_context_takeover"));
            assert!(answer.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            assert!((8..=15).contains(&params.server_max_window_bits()));
            assert!(params.client_no_context_takeover() || config.client_context_takeover);
            assert_eq!(negotiate(&config, [answer.as_bytes()]), Ok(Some(params)));
        }
        Err(refusal) => assert_eq!((refusal.status, refusal.code), (400, "bad_handshake")),
    }
});
