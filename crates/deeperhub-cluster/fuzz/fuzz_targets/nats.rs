//! Parses arbitrary bytes as operations of a NATS server: nothing panics, and the operations do not
//! depend on how the bytes arrive.

#![no_main]

use deeperhub_cluster::fuzz_operations;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (split, bytes) = input;
    fuzz_operations(bytes, split.into());
    // With a valid start, the fuzzer reaches messages at once.
    for verb in [&b"MSG a 1 "[..], b"HMSG a 1 ", b"INFO ", b"-ERR "] {
        fuzz_operations(&[verb, bytes].concat(), split.into());
    }
});
