//! Encodes the messages to the server.

use deeperhub_protocol::Position;

use crate::frame::{FrameTemplate, MaskingKeys, TEXT, write_frame};
use crate::plan::Plan;
use crate::scenario::Scenario;
use crate::stamp::{DIGITS_OFFSET, Stamp, payload};

/// Digits of a topic's number in its name.
const TOPIC_DIGITS: usize = 8;

/// Encodes messages by copying a prepared frame and overwriting the digits that differ.
#[derive(Debug)]
pub(crate) struct MessageEncoder {
    template: FrameTemplate,
    /// Offset of the topic's number in a publish; `None` for echoes.
    topic_at: Option<usize>,
    /// Offset of the stamp's digits.
    digits_at: usize,
    /// Identifies the run in its topics' names, so that concurrent runs do not share topics.
    run_id: u32,
}

impl MessageEncoder {
    pub(crate) fn new(plan: &Plan, run_id: u32, keys: &mut MaskingKeys) -> Self {
        let payload = payload(plan.size);
        let (text, topic_at) = if plan.scenario == Scenario::Echo {
            (format!(r#"{{"type":"echo","data":{payload}}}"#), None)
        } else {
            let start = r#"{"type":"publish","data":{"topic":""#;
            let topic = topic_name(run_id, 0);
            let at = start.len() + topic.len() - TOPIC_DIGITS;
            (format!(r#"{start}{topic}","message":{payload}}}}}"#), Some(at))
        };
        // Only closing braces follow the payload: two in a publish, one in an echo.
        let closing_braces = if topic_at.is_some() { 2 } else { 1 };
        let digits_at = text.len() - closing_braces - payload.len() + DIGITS_OFFSET;
        Self { template: FrameTemplate::new(&text, keys.next_key()), topic_at, digits_at, run_id }
    }

    /// Appends a message: an echo in the scenario `echo`, otherwise a publish to the topic `topic`.
    #[inline]
    pub(crate) fn write(&self, out: &mut Vec<u8>, topic: u32, stamp: Stamp) {
        let digits = stamp.encode();
        match self.topic_at {
            Some(at) => {
                self.template.write(out, [(at, &topic_digits(topic)[..]), (self.digits_at, &digits[..])]);
            }
            None => self.template.write(out, [(self.digits_at, &digits[..])]),
        }
    }

    /// Appends a `subscribe` message.
    pub(crate) fn write_subscribe(&self, out: &mut Vec<u8>, topic: u32, key: [u8; 4]) {
        let text =
            format!(r#"{{"type":"subscribe","data":{{"topic":"{}"}}}}"#, topic_name(self.run_id, topic));
        write_frame(out, TEXT, text.as_bytes(), key);
    }

    /// Appends a `subscribe` message with several topics, each with the position of the subscriber
    /// if it has one.
    pub(crate) fn write_subscribe_list(
        &self,
        out: &mut Vec<u8>,
        topics: impl IntoIterator<Item = (u32, Option<Position>)>,
        key: [u8; 4],
    ) {
        let entry = |(topic, position): (u32, Option<Position>)| {
            let name = topic_name(self.run_id, topic);
            let recover = position.map_or_else(String::new, |Position { epoch, offset, time }| {
                format!(r#","recover":{{"epoch":"{}","offset":{offset},"time":{time}}}"#, epoch.as_str())
            });
            format!(r#"{{"topic":"{name}"{recover}}}"#)
        };
        let entries: Vec<_> = topics.into_iter().map(entry).collect();
        let text = format!(r#"{{"type":"subscribe","data":{{"topics":[{}]}}}}"#, entries.join(","));
        write_frame(out, TEXT, text.as_bytes(), key);
    }

    /// Appends a publish with a reply, to a topic of its own. The reply shows that the server has
    /// processed the messages before it, and in a cluster that the broker has stored them.
    pub(crate) fn write_synchronization(&self, out: &mut Vec<u8>, key: [u8; 4]) {
        let topic = format!("bench.{:08x}.synchronization", self.run_id);
        let text = format!(r#"{{"type":"publish","id":1,"data":{{"topic":"{topic}","message":null}}}}"#);
        write_frame(out, TEXT, text.as_bytes(), key);
    }

    /// Returns the number of one of the run's topics, or `None` for other topics.
    pub(crate) fn topic_number(&self, name: &str) -> Option<u32> {
        let number = name.get(name.len().checked_sub(TOPIC_DIGITS)?..)?.parse().ok()?;
        (topic_name(self.run_id, number) == name).then_some(number)
    }
}

/// Returns a topic's name.
fn topic_name(run_id: u32, number: u32) -> String {
    format!("bench.{run_id:08x}.{number:0TOPIC_DIGITS$}")
}

fn topic_digits(mut number: u32) -> [u8; TOPIC_DIGITS] {
    let mut digits = [b'0'; TOPIC_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    digits
}

#[cfg(test)]
mod tests {
    use deeperhub_protocol::Epoch;
    use deeperhub_protocol::frame::{FrameDecoder, FrameLimits, Incoming};
    use deeperhub_protocol::message::{ClientMessage, Command};

    use super::*;
    use crate::plan::tests::plan;
    use crate::stamp::StampFinder;

    /// Parses the message in `bytes` as the server does.
    fn parsed(mut bytes: Vec<u8>, then: impl FnOnce(Command<'_>)) {
        let (mut decoder, mut at) = (FrameDecoder::new(), 0);
        match decoder.next(&FrameLimits::default(), &mut bytes, &mut at) {
            Ok(Some(Incoming::Text(text))) => then(ClientMessage::parse(text).unwrap().command),
            other => panic!("{other:?}"),
        }
    }

    const STAMP: Stamp = Stamp { stream: 77, sequence: 5, time: 123_456_789 };

    #[test]
    fn the_server_parses_publishes() {
        for size in [40, 128, 5000] {
            let encoder =
                MessageEncoder::new(&plan(&format!("topics --size {size}")), 0xabc, &mut MaskingKeys::new(1));
            let mut out = Vec::new();
            encoder.write(&mut out, 1_000_077, STAMP);
            parsed(out, |command| match command {
                Command::Publish { topic, message, .. } => {
                    assert_eq!(topic.as_str(), "bench.00000abc.01000077");
                    assert_eq!(message.as_ref().len(), size);
                    assert_eq!(StampFinder::new().find(message.as_ref().as_bytes()), Some(STAMP));
                }
                other => panic!("{other:?}"),
            });
        }
    }

    #[test]
    fn the_server_parses_echoes() {
        let encoder = MessageEncoder::new(&plan("echo --size 200"), 1, &mut MaskingKeys::new(2));
        let mut out = Vec::new();
        encoder.write(&mut out, 0, STAMP);
        parsed(out, |command| match command {
            Command::Echo { data } => {
                assert_eq!(data.as_ref().len(), 200);
                assert_eq!(StampFinder::new().find(data.as_ref().as_bytes()), Some(STAMP));
            }
            other => panic!("{other:?}"),
        });
    }

    #[test]
    fn the_server_parses_a_subscribe_list() {
        let encoder = MessageEncoder::new(&plan("recover"), 0xabc, &mut MaskingKeys::new(4));
        let mut out = Vec::new();
        let position = Position { epoch: Epoch::from_bits(7), offset: 41, time: 5 };
        encoder.write_subscribe_list(&mut out, [(3, None), (42, Some(position))], [1, 2, 3, 4]);
        parsed(out, |command| {
            let Command::SubscribeList { topics } = command else { panic!("{command:?}") };
            let requests: Vec<_> = topics.entries().map(|entry| entry.request.unwrap()).collect();
            let names: Vec<_> = requests.iter().map(|request| request.subscription.as_str()).collect();
            assert_eq!(names, ["bench.00000abc.00000003", "bench.00000abc.00000042"]);
            assert_eq!(requests[0].recover, None);
            let recover = requests[1].recover.as_ref().unwrap();
            assert_eq!((recover.epoch, recover.offset, recover.time), (Some(position.epoch), 41, Some(5)));
            let numbers: Vec<_> = names.iter().map(|name| encoder.topic_number(name)).collect();
            assert_eq!(numbers, [Some(3), Some(42)]);
        });
        assert_eq!(encoder.topic_number("bench.00000abd.00000003"), None);
        assert_eq!(encoder.topic_number("a"), None);
    }

    #[test]
    fn subscribe_and_publish_use_the_same_topic() {
        let encoder = MessageEncoder::new(&plan("fanout"), 0xabc, &mut MaskingKeys::new(3));
        let mut out = Vec::new();
        encoder.write_subscribe(&mut out, 42, [1, 2, 3, 4]);
        parsed(out, |command| match command {
            Command::Subscribe(request) => {
                assert_eq!(request.subscription.as_str(), "bench.00000abc.00000042");
            }
            other => panic!("{other:?}"),
        });
    }
}
