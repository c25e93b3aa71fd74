//! Parsing of envelopes.

use deeperhub_protocol::{ClientId, RawJson, Topic};

use super::header::Header;
use super::reader::Reader;
use super::{ClientRequest, Envelope, EnvelopeError, Message};
use crate::operation::{Action, Operation, Target};

impl<'a> Envelope<'a> {
    /// Parses an envelope. Only client IDs are copied.
    ///
    /// # Errors
    ///
    /// Returns [`EnvelopeError`] for bytes that [`Self::write`] would not have written.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let mut reader = Reader(bytes);
        let Header { kind, origin, sequence } = Header::read(&mut reader)?;
        let message = Message::read(kind, &mut reader)?;
        Ok(Self { origin, sequence, message })
    }
}

impl<'a> Message<'a> {
    fn read(kind: u8, reader: &mut Reader<'a>) -> Result<Self, EnvelopeError> {
        let message = match kind {
            1 => {
                let topic = Topic::parse(reader.short_text("topic")?);
                let from = match reader.short_text("from")? {
                    "" => None,
                    id => Some(ClientId::parse(id).ok_or(EnvelopeError::Field("from"))?),
                };
                let trace = reader.trace()?;
                let payload = reader.payload(|text| RawJson::parse(text).ok())?;
                Self::Publish {
                    topic: topic.map_err(|_| EnvelopeError::Field("topic"))?,
                    from,
                    trace,
                    payload,
                }
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
            other => Self::Operation(Operation::read(other, reader)?),
        };
        if reader.0.is_empty() { Ok(message) } else { Err(EnvelopeError::Length) }
    }
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
