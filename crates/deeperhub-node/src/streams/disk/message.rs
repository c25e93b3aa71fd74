//! The form in which a message lies on the disk.

use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::StreamMessage;
use deeperhub_protocol::{ClientId, Epoch, RawJson};

/// Flag of a stored message that its publisher does not get.
const EXCLUDES_PUBLISHER: u8 = 1;

/// A message as it is stored: a byte of flags, a byte with the length of the publisher's ID, the ID,
/// and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredMessage<'a> {
    pub(crate) excludes_publisher: bool,
    pub(crate) from: Option<&'a str>,
    pub(crate) payload: &'a str,
}

impl<'a> StoredMessage<'a> {
    /// Returns the bytes before ID and payload. An ID of 256 bytes or more is left out; there are
    /// none.
    pub(super) fn head(&self) -> ([u8; 2], &'a str) {
        let from = self.from.unwrap_or_default();
        let (from, from_len) = u8::try_from(from.len()).map_or(("", 0), |len| (from, len));
        ([if self.excludes_publisher { EXCLUDES_PUBLISHER } else { 0 }, from_len], from)
    }

    /// Reads a stored message. Returns `None` if it is not one.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[flags, from_len], rest) = bytes.split_first_chunk::<2>()?;
        let (from, payload) = rest.split_at_checked(from_len.into())?;
        Some(Self {
            excludes_publisher: flags & EXCLUDES_PUBLISHER != 0,
            from: (from_len > 0).then(|| std::str::from_utf8(from)).transpose().ok()?,
            payload: std::str::from_utf8(payload).ok()?,
        })
    }

    /// Encodes the delivery of this message at a place in its stream. Returns `None` if the payload
    /// is not JSON.
    pub(super) fn frame(&self, topic: &str, epoch: Epoch, (offset, time): (u64, u64)) -> Option<KeptFrame> {
        let from = self.from.and_then(ClientId::parse);
        let message = StreamMessage {
            topic,
            message: RawJson::parse(self.payload).ok()?,
            from: from.as_ref(),
            time,
            traceparent: None,
            tracestate: None,
        };
        let unsealed = message.encode();
        let unsealed = if self.excludes_publisher { unsealed.excluding_publisher() } else { unsealed };
        Some(unsealed.seal(epoch, offset, None).keep())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(message: &StoredMessage<'_>) -> Vec<u8> {
        let (head, from) = message.head();
        [&head[..], from.as_bytes(), message.payload.as_bytes()].concat()
    }

    #[test]
    fn a_stored_message_is_read_as_it_was() {
        for from in [None, Some("n1.0-1-2")] {
            for excludes_publisher in [false, true] {
                for payload in ["1", r#"{"a":"é"}"#] {
                    let message = StoredMessage { excludes_publisher, from, payload };
                    assert_eq!(StoredMessage::parse(&bytes(&message)), Some(message));
                }
            }
        }
        for damaged in [&b""[..], b"\0", b"\0\x09short", b"\0\x01\xff1", b"\0\0\xff"] {
            assert_eq!(StoredMessage::parse(damaged), None);
        }
    }

    #[test]
    fn a_restored_frame_is_the_delivery_under_the_new_epoch() {
        let message = StoredMessage { excludes_publisher: true, from: Some("n1.0-1-2"), payload: "[1]" };
        let frame = message.frame("a", Epoch::from_bits(7), (5, 6)).unwrap();
        let epoch = Epoch::from_bits(7);
        let text = format!(
            r#"{{"type":"message","data":{{"topic":"a","message":[1],"from":"n1.0-1-2","time":6,"epoch":"{epoch}","offset":5}}}}"#
        );
        assert!(frame.as_bytes().ends_with(text.as_bytes()));
        assert!(!frame.is_for(&ClientId::parse("n1.0-1-2").unwrap()));
        let broken = StoredMessage { payload: "[1", ..message };
        assert!(broken.frame("a", Epoch::from_bits(7), (5, 6)).is_none());
    }
}
