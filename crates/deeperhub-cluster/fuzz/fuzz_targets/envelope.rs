//! Any bytes as an envelope: nothing panics, and what is read is written as it was.

#![no_main]

use deeperhub_cluster::Envelope;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert_eq!(envelope.write(), bytes);
    }
});
