//! Parses arbitrary bytes as an envelope: nothing panics, and a parsed envelope is encoded to the
//! same bytes.

#![no_main]

use deeperhub_cluster::Envelope;
use libfuzzer_sys::fuzz_target;

/// Version, kind, incarnation, sequence and origin of a stored message. With a valid start, the
/// fuzzer reaches its fields at once.
const STORED: &[u8] = b"\x01\x11\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\x01n";

/// The same of the start of a new stream.
const STREAM_RESET: &[u8] = b"\x01\x12\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\x01n";

fn check(bytes: &[u8]) {
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert_eq!(envelope.write(), bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&[STORED, bytes].concat());
    check(&[STREAM_RESET, bytes].concat());
});
