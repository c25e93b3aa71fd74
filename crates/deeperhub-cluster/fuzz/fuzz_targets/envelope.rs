//! Parses arbitrary bytes as an envelope: nothing panics, and a parsed envelope is encoded to the
//! same bytes.

#![no_main]

use deeperhub_cluster::Envelope;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert_eq!(envelope.write(), bytes);
    }
});
