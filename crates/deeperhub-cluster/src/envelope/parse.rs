//! Parsing of envelopes.

use deeperhub_protocol::{ClientId, RawJson, Topic};

use super::header::Header;
use super::reader::Reader;
use super::{Envelope, EnvelopeError, Message};

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
            2 => Self::Send {
                request: reader.number()?,
                client: reader.client()?,
                payload: reader.server_object()?,
            },
            3 => Self::Disconnect { request: reader.number()?, client: reader.client()? },
            4 => Self::SendToUser { user: reader.long_text("user")?, payload: reader.server_object()? },
            5 => Self::Broadcast { payload: reader.server_object()? },
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
            11 => Self::DisconnectUser { user: reader.long_text("user")? },
            12 => Self::Unsubscribe {
                request: reader.number()?,
                client: reader.client()?,
                topic: reader.subscription()?,
            },
            13 => Self::UnsubscribeUser { user: reader.long_text("user")?, topic: reader.subscription()? },
            14 => Self::Probe { number: reader.number()? },
            unknown => return Err(EnvelopeError::Kind(unknown)),
        };
        if reader.0.is_empty() { Ok(message) } else { Err(EnvelopeError::Length) }
    }
}
