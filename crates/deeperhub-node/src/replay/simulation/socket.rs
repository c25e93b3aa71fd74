//! A model of a worker's connections: bounded queues before sockets of different speed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use deeperhub_listener::{ConnectionKey, Multicast, QueueFull};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{ClientId, CloseReason, Epoch, GapReason};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::Outlet;
use super::topics::TOPICS;
use crate::connection_id::ConnectionId;
use crate::worker::refusals::Receivers;

/// Bytes that a socket takes before its client reads.
const SOCKET_BYTES: usize = 2000;

/// An offset in an epoch.
pub(super) type Place = (Epoch, u64);

/// The content of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Subscribed {
        place: Option<Place>,
    },
    Unsubscribed,
    Message {
        number: u64,
        place: Option<Place>,
        prev: Option<u64>,
    },
    Gap {
        place: Place,
        from: Option<u64>,
        reason: GapReason,
    },
    Position {
        place: Place,
    },
    /// A reply that concerns no single topic, or one that only real clients read.
    Other,
}

/// A frame that was sent to a connection.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) key: ConnectionKey,
    pub(super) topic: usize,
    pub(super) content: Content,
    pub(super) text: Arc<str>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) id: ConnectionId,
    pub(super) client_id: ClientId,
    pub(super) client: u8,
    /// Bytes that the client reads per round.
    pub(super) speed: usize,
    pub(super) has_compression: bool,
    queue: VecDeque<(usize, Sent)>,
    queued_bytes: usize,
    /// Bytes of the first frame that the socket has taken.
    front_written: usize,
    free_bytes: usize,
    is_full: bool,
    pub(super) wants_drain: bool,
    is_over_limit: bool,
    is_closing: bool,
    pub(super) received: Vec<Sent>,
    sent: u64,
}

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) open: BTreeMap<ConnectionKey, Socket>,
    /// Deliveries that the worker may still make in its round.
    pub(super) budget: usize,
    max_queue_bytes: usize,
    /// Frames that were sent, until the oracle has seen them.
    pub(super) sent: Vec<Sent>,
}

impl Socket {
    pub(super) fn new(id: ConnectionId, client_id: ClientId, client: u8, speed: usize) -> Self {
        Self {
            id,
            client_id,
            client,
            speed,
            has_compression: false,
            queue: VecDeque::new(),
            queued_bytes: 0,
            front_written: 0,
            free_bytes: SOCKET_BYTES,
            is_full: false,
            wants_drain: false,
            is_over_limit: false,
            is_closing: false,
            received: Vec::new(),
            sent: 0,
        }
    }

    fn write(&mut self) {
        while let Some((len, _)) = self.queue.front()
            && self.free_bytes > 0
        {
            let written = self.free_bytes.min(len - self.front_written);
            self.free_bytes -= written;
            self.queued_bytes -= written;
            self.front_written += written;
            if self.front_written == *len {
                self.front_written = 0;
                self.received.extend(self.queue.pop_front().map(|(_, sent)| sent));
            }
        }
        self.is_full = !self.queue.is_empty();
    }
}

impl Sockets {
    pub(super) fn new(max_queue_bytes: usize) -> Self {
        Self { open: BTreeMap::new(), budget: 0, max_queue_bytes, sent: Vec::new() }
    }

    /// Queues frames that stand one after the other. Returns `false` if the connection is closed.
    pub(super) fn queue(&mut self, key: ConnectionKey, mut frames: &[u8]) -> bool {
        let Some(socket) = self.open.get_mut(&key).filter(|socket| !socket.is_over_limit) else {
            return false;
        };
        while !frames.is_empty() {
            let (len, text) = split(frames);
            let (topic, content) = parse(text);
            let sent = Sent { key, topic, content, text: text.into() };
            self.sent.push(sent.clone());
            socket.queue.push_back((len, sent));
            socket.queued_bytes += len;
            socket.sent += 1;
            self.budget = self.budget.saturating_sub(1);
            frames = &frames[len..];
        }
        if socket.queued_bytes > self.max_queue_bytes {
            socket.write();
        }
        socket.is_over_limit = socket.queued_bytes > self.max_queue_bytes;
        !socket.is_over_limit
    }

    /// Writes all queues as far as the sockets take them. Returns the connections to notify.
    pub(super) fn write(&mut self) -> Vec<ConnectionKey> {
        let mut drained = Vec::new();
        for (key, socket) in &mut self.open {
            socket.free_bytes = SOCKET_BYTES.min(socket.free_bytes.saturating_add(socket.speed));
            socket.write();
            if socket.speed >= SOCKET_BYTES {
                while socket.is_full {
                    socket.free_bytes = SOCKET_BYTES;
                    socket.write();
                }
            }
            if socket.wants_drain && socket.queued_bytes <= self.max_queue_bytes / 4 {
                socket.wants_drain = false;
                drained.push(*key);
            }
        }
        drained
    }

    /// Returns the connections that end with this round.
    pub(super) fn ending(&self) -> Vec<ConnectionKey> {
        let is_ending = |socket: &Socket| socket.is_closing || socket.is_over_limit;
        self.open.iter().filter(|(_, socket)| is_ending(socket)).map(|(key, _)| *key).collect()
    }

    /// Returns `true` if frames can still be queued for a connection.
    pub(super) fn queues(&self, key: ConnectionKey) -> bool {
        self.open.get(&key).is_some_and(|socket| !socket.is_over_limit)
    }
}

impl Receivers for Sockets {
    type Session = u64;

    fn is_open(&mut self, key: ConnectionKey) -> bool {
        self.open.contains_key(&key)
    }

    fn send_multicast(&mut self, key: ConnectionKey, multicast: &Multicast) -> Option<&mut u64> {
        let is_queued = self.queue(key, multicast.frame().as_bytes());
        self.open.get_mut(&key).filter(|_| is_queued).map(|socket| &mut socket.sent)
    }

    fn try_send_multicast(
        &mut self,
        key: ConnectionKey,
        multicast: &Multicast,
    ) -> Result<Option<&mut u64>, QueueFull> {
        let (len, max) = (multicast.frame().len(), self.max_queue_bytes);
        if let Some(socket) = self.open.get_mut(&key)
            && !socket.is_over_limit
            && socket.queued_bytes + len > max / 2
        {
            let has_room = |queued: usize| queued <= max / 2 && queued + len <= max;
            if socket.is_full {
                return Err(QueueFull);
            }
            if !has_room(socket.queued_bytes) {
                socket.write();
                if socket.queued_bytes > 0 && !has_room(socket.queued_bytes) {
                    return Err(QueueFull);
                }
            }
        }
        Ok(self.send_multicast(key, multicast))
    }

    fn send(&mut self, key: ConnectionKey, frame: &Frame) -> bool {
        self.queue(key, frame.as_bytes())
    }
}

impl Outlet for Sockets {
    fn client_id(&mut self, key: ConnectionKey) -> Option<ClientId> {
        Some(self.open.get(&key)?.client_id.clone())
    }

    fn queued_bytes(&self, key: ConnectionKey) -> Option<usize> {
        let socket = self.open.get(&key)?;
        (!socket.is_over_limit).then_some(socket.queued_bytes)
    }

    fn max_queue_bytes(&self) -> usize {
        self.max_queue_bytes
    }

    fn has_budget(&self) -> bool {
        self.budget > 0
    }

    fn notify_when_drained(&mut self, key: ConnectionKey) {
        if let Some(socket) = self.open.get_mut(&key).filter(|socket| !socket.is_over_limit) {
            socket.wants_drain = true;
        }
    }

    fn sends_single_frames(&self, key: ConnectionKey) -> bool {
        self.open.get(&key).is_some_and(|socket| socket.has_compression)
    }

    fn send(&mut self, key: ConnectionKey, _topic: &Arc<str>, frame: &Frame) -> bool {
        self.queue(key, frame.as_bytes())
    }

    fn send_encoded(&mut self, key: ConnectionKey, frames: &[u8], count: usize) -> bool {
        let before = self.sent.len();
        let is_open = self.queues(key);
        let is_queued = self.queue(key, frames);
        assert_eq!(self.sent.len() - before, if is_open { count } else { 0 });
        is_queued
    }

    fn close(&mut self, key: ConnectionKey, _reason: CloseReason) {
        if let Some(socket) = self.open.get_mut(&key) {
            socket.is_closing = true;
        }
    }
}

/// The members of a message to a client that the simulation reads.
#[derive(Deserialize)]
struct Text<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Data<'a> {
    topic: Option<&'a str>,
    message: Option<Payload>,
    epoch: Option<&'a str>,
    offset: Option<u64>,
    prev: Option<u64>,
    /// First offset of a gap, or the publisher of a message.
    from: Option<serde_json::Value>,
    to: Option<u64>,
    reason: Option<&'a str>,
}

/// The JSON of all published messages.
#[derive(Deserialize)]
pub(super) struct Payload {
    /// Number of the message.
    pub(super) n: u64,
}

/// Returns the length and the text of the first frame.
fn split(frames: &[u8]) -> (usize, &str) {
    let (header, len) = match frames[1] {
        126 => (4, usize::from(u16::from_be_bytes([frames[2], frames[3]]))),
        len => {
            assert!(len < 126, "the frame is too long for the simulation");
            (2, usize::from(len))
        }
    };
    (header + len, str::from_utf8(&frames[header..header + len]).unwrap())
}

/// Returns the topic and the content of a message to a client.
fn parse(text: &str) -> (usize, Content) {
    let Text { r#type, data } = serde_json::from_str(text).unwrap();
    if !["subscribed", "unsubscribed", "message", "gap", "position"].contains(&r#type) {
        return (usize::MAX, Content::Other);
    }
    let data: Data<'_> = serde_json::from_str(data.unwrap().get()).unwrap();
    let Some(name) = data.topic else { return (usize::MAX, Content::Other) };
    let place = data.epoch.map(|epoch| (Epoch::parse(epoch).unwrap(), data.offset.or(data.to).unwrap()));
    let content = match r#type {
        "subscribed" => Content::Subscribed { place },
        "unsubscribed" => Content::Unsubscribed,
        "message" => Content::Message { number: data.message.unwrap().n, place, prev: data.prev },
        "position" => Content::Position { place: place.unwrap() },
        _ => {
            let is_reason = |reason: &&GapReason| Some(reason.as_str()) == data.reason;
            let reason = *GapReason::ALL.iter().find(is_reason).unwrap();
            Content::Gap { place: place.unwrap(), from: data.from.and_then(|from| from.as_u64()), reason }
        }
    };
    (TOPICS.iter().position(|topic| *topic == name).unwrap_or(usize::MAX), content)
}
