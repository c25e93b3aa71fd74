use deeperhub_metrics::Cells;

use super::*;

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn handshake() -> Handshake<()> {
    let peer = SocketAddr::new(IpAddr::from([192, 0, 2, 1]), 1);
    Handshake::new(peer, ClientSource::Peer, None, Instant::now())
}

/// Feeds a head in parts of `part_len` bytes. Returns the first result, and the number of bytes
/// fed up to it.
fn feed(head: &[u8], part_len: usize) -> (Option<Result<(), u16>>, usize) {
    let (config, metrics) = (Config::default(), Metrics::new(&Cells::new(1)));
    let (mut handshake, mut fed) = (handshake(), 0);
    for bytes in head.chunks(part_len) {
        fed += bytes.len();
        if let Some(result) = handshake.feed(bytes, &config, config.limits.head(), &metrics) {
            return (Some(result.map(drop).map_err(|refusal| refusal.status)), fed);
        }
    }
    (None, fed)
}

#[test]
fn a_head_is_parsed_once_it_is_complete_whatever_its_parts() {
    let complete = [HEAD, b"\r\n"].concat();
    for part_len in 1..=complete.len() {
        let (result, fed) = feed(&complete, part_len);
        assert_eq!((result, fed), (Some(Ok(())), complete.len()), "in parts of {part_len}");
        assert_eq!(feed(HEAD, part_len).0, None, "in parts of {part_len}");
    }
}

#[test]
fn a_head_that_arrives_byte_by_byte_is_parsed_only_a_few_times() {
    let (config, metrics) = (Config::default(), Metrics::new(&Cells::new(1)));
    let (mut handshake, mut parses, mut last_parsed_len) = (handshake(), 0, 0);
    let head = [HEAD, b"X: ", &[b'x'; 20_000]].concat();
    for byte in head.chunks(1) {
        assert!(handshake.feed(byte, &config, config.limits.head(), &metrics).is_none());
        parses += usize::from(handshake.parsed_len != last_parsed_len);
        last_parsed_len = handshake.parsed_len;
    }
    assert!(parses < 20, "{parses}");
}

#[test]
fn invalid_bytes_are_refused_before_the_end_of_the_head() {
    let (result, fed) = feed(b"\x16\x03\x01 this is something else entirely", 1);
    assert_eq!(result, Some(Err(400)));
    assert!(fed < 8, "{fed}");
    assert_eq!(feed(&[HEAD, b"a b: c\r\n", &[b'x'; 1000]].concat(), 1).0, Some(Err(400)));
}

#[test]
fn a_head_over_the_limit_is_refused_at_once() {
    let long = [b"GET / HTTP/1.1\r\nX: ", &[b'x'; 100_000][..]].concat();
    for part_len in [1, 1000, 100_000] {
        let (result, fed) = feed(&long, part_len);
        assert_eq!(result, Some(Err(400)));
        assert!(fed < Config::default().limits.max_head_bytes + part_len, "{part_len}: {fed}");
    }
}
