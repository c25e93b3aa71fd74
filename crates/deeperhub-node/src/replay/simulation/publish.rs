//! Publishes to the simulated node.

use deeperhub_listener::Multicast;
use deeperhub_protocol::message::{ServerMessage, StreamMessage};
use deeperhub_protocol::{Position, RawJson, Topic};

use super::log::Published;
use super::topics::TOPICS;
use super::world::World;
use crate::connection_id::ConnectionId;
use crate::delivery::Delivery;
use crate::streams::{Once, PublishRefusal, StreamPublish};
use crate::trace::fan_out::PublishStamp;

/// A message to be published.
#[derive(Debug)]
pub(super) struct Publication<'a> {
    pub(super) topic: usize,
    pub(super) json: &'a str,
    /// The client that publishes, if it is connected; else the message comes from outside.
    pub(super) by: Option<u8>,
    pub(super) is_excluded: bool,
    pub(super) once: Option<Once<'a>>,
}

impl World {
    /// Returns the number and the JSON of a new message.
    pub(super) fn new_message(&mut self, bytes: usize) -> (u64, String) {
        self.number += 1;
        (self.number, format!(r#"{{"n":{},"x":"{:bytes$}"}}"#, self.number, ""))
    }

    /// Returns the ID of a client's connection.
    pub(super) fn connection_id(&self, client: Option<u8>) -> Option<ConnectionId> {
        let (worker, key) = self.clients[usize::from(client?)].connection?;
        Some(self.workers[worker].sockets.open[&key].id)
    }

    /// Publishes a new message, by a client's connection or from outside, and checks the answer.
    pub(super) fn publish(
        &mut self,
        topic: usize,
        by: Option<u8>,
        (bytes, is_excluded): (usize, bool),
        once: Option<u8>,
    ) -> Result<(), String> {
        let before = self.usage();
        let (number, json) = self.new_message(bytes);
        let id = self.connection_id(by);
        let user = id.and(by).map(|client| format!("user {}", client % 2));
        let text = once.map(|text| text.to_string());
        let publication = Publication {
            topic,
            json: &json,
            by,
            is_excluded,
            once: text.as_deref().map(|text| Once { user: user.as_deref(), text }),
        };
        let Ok((_, position)) = self.publish_message(&publication) else { return self.check_is_full(topic) };
        let Some(position) = position else { return self.check() };
        let message = Published { number, excluded: id.filter(|_| is_excluded).map(|id| id.serial) };
        let times = (self.now.as_secs(), self.oracle.step);
        let place = (position.epoch, position.offset);
        let once = once.map(|text| (user, text));
        let noted = self.oracle.topics[topic].publish(place, message, once, times);
        noted.map_err(|text| format!("{}: {text}", TOPICS[topic]))?;
        let rule = self.streams.rule(&Topic::parse(TOPICS[topic]).unwrap());
        self.check_shares(before, rule.map(|(_, rule)| rule))?;
        self.check()
    }

    /// Publishes a message. Returns the number of subscribers, and the position in a topic with
    /// history.
    pub(super) fn publish_message(
        &mut self,
        publication: &Publication<'_>,
    ) -> Result<(u64, Option<Position>), PublishRefusal> {
        let name = Topic::parse(TOPICS[publication.topic]).unwrap();
        let message = RawJson::parse(publication.json).unwrap();
        let connection = publication.by.and_then(|client| self.clients[usize::from(client)].connection);
        let id = self.connection_id(publication.by);
        let client_id =
            connection.map(|(worker, key)| self.workers[worker].sockets.open[&key].client_id.clone());
        let now = self.now();
        let shard = connection.map(|(worker, _)| &mut self.workers[worker].shard);
        let source = id.map(ConnectionId::publisher_source);
        let excluded = id.filter(|_| publication.is_excluded);
        if let Some((budget, rule)) = self.streams.rule(&name) {
            let message = StreamMessage {
                topic: name.as_str(),
                message,
                from: client_id.as_ref(),
                time: self.clock.unix_ms(now),
                traceparent: None,
                tracestate: None,
            };
            let publish = StreamPublish {
                topic: &name,
                message: &message,
                once: publication.once,
                excluded,
                source,
                is_observed: false,
                span: None,
                published_at: now,
                now: self.clock.seconds(now),
            };
            let published = self.streams.publish(&self.router, shard, &publish, (&budget, rule))?;
            let (published, appended) = published.expect("the rule is in force");
            return Ok((published.subscribers, Some(appended.position)));
        }
        let frame = ServerMessage::Message {
            topic: name.as_str(),
            message,
            from: client_id.as_ref(),
            position: None,
            prev: None,
            traceparent: None,
            tracestate: None,
        }
        .to_frame();
        let make = || Delivery {
            frame: Multicast::new(frame.fork()),
            excluded,
            topic: None,
            stamp: PublishStamp::new(now, None),
            sequenced: None,
        };
        let published = match shard {
            Some(shard) => shard.publish(&name, source, frame.len(), make),
            None => self.router.publish(&name, source, frame.len(), make),
        };
        Ok((published.subscribers, None))
    }
}
