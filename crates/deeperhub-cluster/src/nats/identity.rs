//! Identities by which a server recognizes messages that it got before.

use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};

use crate::envelope::Header;
use crate::store::{AppendTarget, OwnedOnce};

/// Returns the identity by which the server recognizes a message.
pub(super) fn identity(target: &AppendTarget, envelope: &[u8], topic: &str, epoch: u64) -> String {
    if let Some(OwnedOnce { user, text }) = &target.once {
        // A cleared topic forgets publishes. Users cannot choose the identities of others.
        let length = user.len();
        let text = format!("{epoch} {topic} {length} {user}{text}");
        let hash = digest(&SHA256, text.as_bytes());
        let hex = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}"));
        return format!("o{}", hex.collect::<String>());
    }
    let (incarnation, sequence) =
        Header::parse(envelope).map_or((0, 0), |header| (header.origin.incarnation, header.sequence));
    own_identity(incarnation, sequence)
}

/// Returns the identity of a message that no other node sends.
pub(super) fn own_identity(incarnation: u64, sequence: u64) -> String {
    let mut text = String::with_capacity(33);
    // Writing to a string never fails.
    let _ = write!(text, "{incarnation:x}.{sequence:x}");
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::envelope::{Envelope, Message, Origin};
    use crate::store::{AppendNumber, StreamLimits};

    fn target(once: Option<(&str, &str)>) -> AppendTarget {
        let second = Duration::from_secs(1);
        AppendTarget {
            number: AppendNumber(1),
            limits: StreamLimits { messages: 1, ttl: second, forget: second },
            known: None,
            once: once.map(|(user, text)| OwnedOnce { user: user.into(), text: text.into() }),
            stamp: 0,
            topic: 0,
            topic_len: 0,
        }
    }

    #[test]
    fn publishes_have_identities_of_their_own() {
        let envelope = |sequence| {
            let origin = Origin { node: "n", incarnation: 0xab };
            Envelope { origin, sequence, message: Message::Bye }.write()
        };
        assert_eq!(identity(&target(None), &envelope(0x1f), "t", 1), "ab.1f");
        let once =
            |user, text, topic, epoch| identity(&target(Some((user, text))), &envelope(1), topic, epoch);
        let first = once("uada", "x", "t", 1);
        assert_eq!((first.len(), once("uada", "x", "t", 1)), (33, first.clone()));
        for other in [
            once("uada", "x", "t", 2),
            once("uada", "x", "u", 1),
            once("uad", "ax", "t", 1),
            once("uada", "y", "t", 1),
            once("-", "x", "t", 1),
        ] {
            assert_ne!(first, other);
        }
    }
}
