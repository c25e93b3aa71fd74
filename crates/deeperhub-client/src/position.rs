//! Positions in topics with history.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A position in a topic with history: the last message that was seen.
///
/// Its JSON form is that of the protocol, so that it can be stored as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// A text that changes when the topic starts to count anew.
    #[serde(deserialize_with = "shared_text", serialize_with = "plain_text")]
    pub epoch: Arc<str>,
    /// The number of the message, from 1; 0 is before the first one.
    pub offset: u64,
    /// The server's time in milliseconds since 1970.
    #[serde(default)]
    pub time: u64,
}

fn shared_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Arc::from)
}

fn plain_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl Position {
    /// Returns `true` if `self` and `other` are in the same stream, and `self` is not before
    /// `other`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.offset >= other.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_stored_in_the_words_of_the_protocol() {
        let text = r#"{"epoch":"k3J9aQx2","offset":41,"time":1796000000057}"#;
        let position: Position = serde_json::from_str(text).expect("it parses");
        assert_eq!(serde_json::to_string(&position).expect("it is written"), text);
    }

    #[test]
    fn only_later_positions_of_the_same_stream_cover_one() {
        let at = |epoch: &str, offset| Position { epoch: epoch.into(), offset, time: 0 };
        assert!(at("a", 5).covers(&at("a", 5)));
        assert!(!at("a", 4).covers(&at("a", 5)));
        assert!(!at("b", 6).covers(&at("a", 5)));
    }
}
