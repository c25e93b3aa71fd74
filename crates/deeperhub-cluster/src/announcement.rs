//! The version that a node's heartbeats tell, with a digest of the node's rules for history.
//!
//! The digest is build metadata of the version, as Semantic Versioning defines it. Nodes of earlier
//! versions thus show it, and need not understand it.

/// Text between the version and the digest.
const SEPARATOR: &str = "+history.";

/// Returns the text for heartbeats. The digest is 0 without rules for history.
pub(crate) fn write(version: &str, rules: u32) -> String {
    format!("{version}{SEPARATOR}{rules:08x}")
}

/// Returns the digest in the text of a heartbeat; `None` if the version of the node keeps no history
/// in a cluster.
pub(crate) fn rules(announced: &str) -> Option<u32> {
    let (_, digest) = announced.split_once(SEPARATOR)?;
    u32::from_str_radix(digest, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_was_written() {
        for digest in [0, 1, 0x00ab_cdef, u32::MAX] {
            assert_eq!(rules(&write("1.2.3", digest)), Some(digest));
        }
        for earlier in ["", "1.2.3", "1.2.3+history.", "1.2.3+history.x", "1.2.3+build.7"] {
            assert_eq!(rules(earlier), None, "{earlier}");
        }
    }
}
