//! Parsing of envelopes.

use std::cell::RefCell;

use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Topic, TopicError};

use super::header::{Head, Header};
use super::reader::Reader;
use super::{ClientRequest, Envelope, EnvelopeError, Message, STORED, STREAM_RESET};
use crate::operation::{Action, Operation, Target};
use crate::store::{MAX_EPOCH, MAX_OFFSET, StorePosition};

impl<'a> Envelope<'a> {
    /// Parses an envelope. Only client IDs are copied.
    ///
    /// # Errors
    ///
    /// Returns [`EnvelopeError`] for bytes that [`Self::write`] would not have written.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let (head, rest) = Head::split(bytes)?;
        let mut reader = Reader::of_texts(rest);
        let Header { kind, origin, sequence } = head.with_node(&mut reader)?;
        let message = Message::read(kind, &mut reader)?;
        Ok(Self { origin, sequence, message })
    }
}

impl<'a> Message<'a> {
    pub(super) fn read(kind: u8, reader: &mut Reader<'a>) -> Result<Self, EnvelopeError> {
        let message = match kind {
            1 => {
                let (topic, from, trace, payload) = read_publish(reader, read_topic)?;
                Self::Publish { topic, from, trace, payload }
            }
            6 => Self::Query { request: reader.number()?, text: reader.rest("text")? },
            7 => Self::Answer { request: reader.number()?, text: reader.rest("text")? },
            8 => Self::Hello {
                joined: reader.boolean("joined")?,
                wants_answer: reader.boolean("wants_answer")?,
                connections: reader.number()?,
                version: reader.short_text("version")?,
            },
            9 => Self::NameTaken { incarnation: reader.number()? },
            10 => Self::Bye,
            14 => Self::Probe { number: reader.number()? },
            STORED => {
                let epoch = read_epoch(reader)?;
                let (offset, previous, time) = (reader.number()?, reader.number()?, reader.number()?);
                if previous >= offset || offset > MAX_OFFSET {
                    return Err(EnvelopeError::Field("offset"));
                }
                let excludes_publisher = reader.boolean("excludes_publisher")?;
                let (topic, from, trace, payload) = read_publish(reader, read_stored_topic)?;
                let position = StorePosition { epoch, offset };
                Self::Stored { position, previous, time, excludes_publisher, topic, from, trace, payload }
            }
            STREAM_RESET => {
                let (epoch, time) = (read_epoch(reader)?, reader.number()?);
                Self::StreamReset { epoch, time, topic: reader.topic()? }
            }
            other => Self::Operation(Operation::read(other, reader)?),
        };
        if reader.is_empty() { Ok(message) } else { Err(EnvelopeError::Length) }
    }
}

type PublishFields<'a> = (Topic<'a>, Option<ClientId>, TraceContext<'a>, RawJson<'a>);

fn read_topic(text: &str) -> Result<Topic<'_>, TopicError> {
    Topic::parse(text)
}

/// Parses the topic of a stored message, which can be one of a node itself: nodes probe the store.
fn read_stored_topic(text: &str) -> Result<Topic<'_>, TopicError> {
    match text.strip_prefix('$') {
        Some(name) => Topic::parse(name).map(Topic::reserved),
        None => Topic::parse(text),
    }
}

fn read_publish<'a>(
    reader: &mut Reader<'a>,
    read_topic: impl Fn(&'a str) -> Result<Topic<'a>, TopicError>,
) -> Result<PublishFields<'a>, EnvelopeError> {
    let topic = read_topic(reader.short_text("topic")?);
    let from = match reader.short_text("from")? {
        "" => None,
        id => Some(parse_publisher(id)?),
    };
    let trace = reader.trace()?;
    let payload = reader.payload(|text| RawJson::parse(text).ok())?;
    Ok((topic.map_err(|_| EnvelopeError::Field("topic"))?, from, trace, payload))
}

/// Parses the ID of a publisher. Successive messages often have the same one, which then is neither
/// checked nor copied again.
fn parse_publisher(id: &str) -> Result<ClientId, EnvelopeError> {
    thread_local! {
        static LAST: RefCell<Option<ClientId>> = const { RefCell::new(None) };
    }
    LAST.with_borrow_mut(|last| match last {
        Some(last) if last.as_str() == id => Ok(last.clone()),
        _ => {
            let parsed = ClientId::parse(id).ok_or(EnvelopeError::Field("from"))?;
            Ok(last.insert(parsed).clone())
        }
    })
}

/// Reads an epoch. Every epoch of a store is a time, and has a wire form.
fn read_epoch(reader: &mut Reader<'_>) -> Result<u64, EnvelopeError> {
    let epoch = reader.number()?;
    if (1..=MAX_EPOCH).contains(&epoch) { Ok(epoch) } else { Err(EnvelopeError::Field("epoch")) }
}

impl<'a> Operation<'a, ClientRequest> {
    fn read(kind: u8, reader: &mut Reader<'a>) -> Result<Self, EnvelopeError> {
        let target = match kind {
            2 | 3 | 12 => {
                Target::Client(ClientRequest { request: reader.number()?, client: reader.client()? })
            }
            4 | 11 | 13 => Target::User(reader.long_text("user")?.into()),
            5 | 15 | 16 => Target::All,
            unknown => return Err(EnvelopeError::Kind(unknown)),
        };
        let action = match kind {
            2 | 4 | 5 => Action::Send(reader.server_object()?),
            12 | 13 | 16 => Action::Unsubscribe(reader.subscription()?),
            3 | 11 | 15 => Action::Disconnect,
            unknown => return Err(EnvelopeError::Kind(unknown)),
        };
        Ok(Self { target, action })
    }
}
