//! Any bytes as a header of the PROXY protocol and as headers of HTTP: nothing panics, more bytes
//! change no decision, and what a client writes left of a trusted proxy's entry changes nothing.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use deeperhub_security::proxy::v2::MAX_BYTES;
use deeperhub_security::proxy::{Header, Parsed, TrustedProxies, parse, parse_network};
use libfuzzer_sys::fuzz_target;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fuzz_target!(|bytes: &[u8]| {
    check_parse(bytes);
    check_parse(&[b"\r\n\r\n\0\r\nQUIT\n", bytes].concat());
    check_parse(&[b"PROXY ", bytes].concat());
    check_parse(&[b"PROXY TCP4 ", bytes, b"\r\n"].concat());
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(network) = parse_network(text) {
        assert_eq!(parse_network(&network.to_string()), Ok(network));
    }
    let trusted = TrustedProxies::parse(["10.0.0.0/8"]).expect("a network");
    for (header, ours) in [
        (Header::XForwardedFor, "192.0.2.1, 10.0.0.2"),
        (Header::Forwarded, "for=\"192.0.2.1:5\";host=\"a,b\", for=10.0.0.2"),
    ] {
        let _ = trusted.client(PEER, header, [text]);
        let _ = trusted.client(PEER, header, text.lines());
        for values in [vec![text, ours], vec![&*format!("{text}, {ours}")]] {
            let client = trusted.client(PEER, header, values);
            assert_eq!(client, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        }
    }
});

fn check_parse(bytes: &[u8]) {
    let whole = parse(bytes);
    for cut in 0..bytes.len().min(300) {
        match parse(&bytes[..cut]) {
            Ok(Parsed::Partial) => {}
            Ok(complete) => assert_eq!(Ok(complete), whole),
            Err(_) => assert!(whole.is_err()),
        }
    }
    if let Ok(Parsed::Complete { length, .. }) = whole {
        assert!(length <= bytes.len() && length <= MAX_BYTES);
    }
}
