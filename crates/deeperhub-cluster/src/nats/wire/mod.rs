//! The client protocol of NATS, without I/O: parsing of what a server sends, and writing of what a
//! client sends.

pub(super) mod command;
pub(super) mod headers;
pub(super) mod operation;

#[cfg(test)]
mod model_tests;

/// Parses bytes as operations of a server, at once and in two parts, for fuzzing.
///
/// # Panics
///
/// If the parts give other operations than the whole.
#[cfg(fuzzing)]
pub fn fuzz_operations(bytes: &[u8], split: usize) {
    use operation::{Parsed, parse};

    let operations = |bytes: &[u8], mut at: usize| {
        let mut found = Vec::new();
        while let Ok(Parsed::Whole(operation, end)) = parse(bytes, at) {
            assert!(end > at && end <= bytes.len());
            found.push((operation, end));
            at = end;
        }
        (found, at)
    };
    let (whole, _) = operations(bytes, 0);
    let (mut parts, at) = operations(&bytes[..split.min(bytes.len())], 0);
    parts.extend(operations(bytes, at).0);
    assert_eq!(whole, parts);
}
