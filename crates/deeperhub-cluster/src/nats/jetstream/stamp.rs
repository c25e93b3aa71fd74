//! Positions of messages, written into their envelopes.

use bytes::Bytes;

use super::super::request::Message;
use super::known::{Known, Mark};
use crate::envelope::{
    Envelope, Header, Message as Content, Origin, STAMP_BYTES, STORED, stamp_offset, stored_topic_offset,
};

/// A message of a stream, as the server sends it to followers.
#[derive(Debug)]
pub(crate) struct Republished {
    /// Epoch and sequence, which order the messages of a stream.
    pub(crate) key: (u64, u64),
    /// The envelope with its position.
    pub(crate) envelope: Bytes,
}

impl Republished {
    /// Writes the position of a republished message into its envelope, and notes the message.
    /// Returns `None` if it is no message of a stream.
    pub(crate) fn parse(known: &Known, prefix: &str, message: &Message) -> Option<Self> {
        let headers = message.headers();
        let stream = headers.last("Nats-Stream")?;
        let sequence: u64 = headers.last("Nats-Sequence")?.parse().ok()?;
        let previous = headers.last("Nats-Last-Sequence").and_then(|text| text.parse().ok());
        let time = headers.last("Nats-Time-Stamp").unwrap_or_default();
        let link = known.link();
        if let Some(topic) = stored_topic(&message.payload) {
            let (epoch, previous) = known.with_stream(prefix, stream, |known| {
                known.see_live(sequence, time, link);
                (known.position(topic, sequence).epoch, known.previous(topic, previous.unwrap_or(0)))
            })?;
            let envelope = stamp(&message.payload, epoch, sequence, previous)?;
            return Some(Self { key: (epoch, sequence), envelope });
        }
        // The start of a topic's epoch.
        let envelope = Envelope::parse(&message.payload).ok()?;
        let Content::StreamReset { epoch, topic, .. } = &envelope.message else { return None };
        known.with_stream(prefix, stream, |known| {
            // A stream that has lost the mark must be noticed by all that know it.
            known.see_live(sequence, time, link);
            known.see_mark(topic.as_str(), Mark { epoch: *epoch, after: sequence });
        })?;
        Some(Self { key: (*epoch, sequence), envelope: message.payload.clone() })
    }
}

/// Returns the topic of an envelope that was appended.
pub(crate) fn stored_topic(envelope: &[u8]) -> Option<&str> {
    let (origin_len, _) = appended(envelope)?;
    let start = stored_topic_offset(origin_len);
    let len = usize::from(*envelope.get(start - 1)?);
    std::str::from_utf8(envelope.get(start..start + len)?).ok()
}

/// Returns the origin's name length and the origin of an envelope that was appended.
fn appended(envelope: &[u8]) -> Option<(usize, Origin<'_>)> {
    if envelope.get(1) != Some(&STORED) {
        return None;
    }
    let origin = Header::parse(envelope).ok()?.origin;
    Some((origin.node.len(), origin))
}

/// Returns the time that the publishing node wrote into an envelope.
pub(crate) fn stored_time(envelope: &[u8]) -> Option<u64> {
    let (origin_len, _) = appended(envelope)?;
    let end = stamp_offset(origin_len) + STAMP_BYTES;
    Some(u64::from_be_bytes(envelope.get(end - 8..end)?.try_into().ok()?))
}

/// Returns an appended envelope with its position. The time in it stays.
pub(super) fn stamp(envelope: &[u8], epoch: u64, offset: u64, previous: u64) -> Option<Bytes> {
    let (origin_len, _) = appended(envelope)?;
    let start = stamp_offset(origin_len);
    let mut stamped = envelope.to_vec();
    let fields = [epoch, offset, previous.min(offset.saturating_sub(1))];
    for (index, field) in fields.into_iter().enumerate() {
        let at = start + 8 * index;
        stamped.get_mut(at..at + 8)?.copy_from_slice(&field.to_be_bytes());
    }
    Some(stamped.into())
}

/// Returns the epoch of an envelope that starts one.
pub(super) fn reset_epoch(envelope: &[u8]) -> Option<u64> {
    match Envelope::parse(envelope).ok()?.message {
        Content::StreamReset { epoch, .. } => Some(epoch),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_protocol::message::TraceContext;
    use deeperhub_protocol::{RawJson, Topic};

    use super::super::known::MessageTime;
    use super::*;
    use crate::store::StorePosition;

    const ORIGIN: Origin<'_> = Origin { node: "node-1", incarnation: 7 };

    fn appended_envelope() -> Vec<u8> {
        let message = Content::Stored {
            position: StorePosition { epoch: 0, offset: 0 },
            previous: 0,
            time: 1234,
            excludes_publisher: true,
            topic: Topic::parse("t.é").unwrap(),
            from: None,
            trace: TraceContext::default(),
            payload: RawJson::parse("1").unwrap(),
        };
        Envelope { origin: ORIGIN, sequence: 5, message }.write()
    }

    fn message(payload: Vec<u8>, headers: &[(&str, &str)]) -> Message {
        Message::with_headers(headers, &payload)
    }

    #[test]
    fn a_republished_message_gets_its_position() {
        let known = Known::default();
        known.with_stream("hub", "hub_h_r-1_100", |known| known.checked_for = 0);
        let headers = [
            // A publisher's headers come first.
            ("Nats-Sequence", "99"),
            ("Nats-Stream", "hub_h_r-1_100"),
            ("Nats-Sequence", "12"),
            ("Nats-Last-Sequence", "9"),
            ("Nats-Time-Stamp", "2026-11-29T20:28:30Z"),
        ];
        let stamped = Republished::parse(&known, "hub", &message(appended_envelope(), &headers)).unwrap();
        assert_eq!(stamped.key, (100, 12));
        let envelope = Envelope::parse(&stamped.envelope).unwrap();
        let Content::Stored { position, previous, time, excludes_publisher: true, topic, .. } =
            envelope.message
        else {
            panic!("{envelope:?}")
        };
        assert_eq!((position, previous), (StorePosition { epoch: 100, offset: 12 }, 9));
        assert_eq!((time, topic.as_str(), envelope.sequence), (1234, "t.é", 5));
        assert_eq!(stored_time(&stamped.envelope), Some(1234));
        known.with("r-1", |known| {
            assert_eq!(known.last, Some((12, MessageTime::new("2026-11-29T20:28:30Z"))));
        });
        // Another hub's stream, an older stream, and a message of no stream.
        for stream in ["other_h_r-1_100", "hub_h_r-1_99", "hub"] {
            let headers = [("Nats-Stream", stream), ("Nats-Sequence", "13")];
            assert!(Republished::parse(&known, "hub", &message(appended_envelope(), &headers)).is_none());
        }
        assert!(Republished::parse(&known, "hub", &message(appended_envelope(), &[])).is_none());
    }

    #[test]
    fn a_republished_mark_gives_the_topic_an_epoch() {
        let known = Known::default();
        let topic = Topic::parse("t.é").unwrap();
        let reset = Content::StreamReset { epoch: 150, time: 1, topic };
        let reset = Envelope { origin: ORIGIN, sequence: 6, message: reset }.write();
        let at = |payload: Vec<u8>, sequence: &str| {
            let headers = [("Nats-Stream", "hub_h_r-1_100"), ("Nats-Sequence", sequence)];
            Republished::parse(&known, "hub", &message(payload, &headers)).map(|stamped| stamped.key)
        };
        assert_eq!(at(appended_envelope(), "3"), Some((100, 3)));
        assert_eq!(at(reset, "4"), Some((150, 4)));
        assert_eq!(known.with("r-1", |known| (known.highest, known.last)), (4, None));
        assert_eq!(at(appended_envelope(), "5"), Some((150, 5)));
    }

    #[test]
    fn broken_envelopes_are_not_stamped() {
        let envelope = appended_envelope();
        for length in 0..stored_topic_offset(ORIGIN.node.len()) {
            assert_eq!(stored_topic(&envelope[..length]), None);
        }
        assert_eq!(stamp(b"", 1, 1, 0), None);
    }
}
