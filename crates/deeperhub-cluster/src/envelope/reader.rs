//! Reading of an envelope's fields.

use std::borrow::Cow;

use deeperhub_protocol::message::{TraceContext, check_server_object};
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};

use super::EnvelopeError;

/// The bytes that are not parsed yet.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], EnvelopeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(EnvelopeError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], EnvelopeError> {
        self.take(N)?.try_into().map_err(|_| EnvelopeError::Length)
    }

    pub(super) fn byte(&mut self) -> Result<u8, EnvelopeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn number(&mut self) -> Result<u64, EnvelopeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(super) fn boolean(&mut self, field: &'static str) -> Result<bool, EnvelopeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(EnvelopeError::Field(field)),
        }
    }

    pub(super) fn short_text(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        let length = self.byte()?;
        text(self.take(length.into())?, field)
    }

    pub(super) fn long_text(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        let length = u16::from_be_bytes(self.array()?);
        text(self.take(length.into())?, field)
    }

    pub(super) fn rest(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        text(std::mem::take(&mut self.0), field)
    }

    pub(super) fn client(&mut self) -> Result<ClientId, EnvelopeError> {
        ClientId::parse(self.short_text("client")?).ok_or(EnvelopeError::Field("client"))
    }

    pub(super) fn topic(&mut self) -> Result<Topic<'a>, EnvelopeError> {
        Topic::parse(self.short_text("topic")?).map_err(|_| EnvelopeError::Field("topic"))
    }

    pub(super) fn subscription(&mut self) -> Result<Subscription<'a>, EnvelopeError> {
        Subscription::parse(self.short_text("topic")?).map_err(|_| EnvelopeError::Field("topic"))
    }

    pub(super) fn trace(&mut self) -> Result<TraceContext<'a>, EnvelopeError> {
        let mut field = |name| {
            let text = self.long_text(name)?;
            Ok((!text.is_empty()).then_some(Cow::Borrowed(text)))
        };
        let (traceparent, tracestate) = (field("traceparent")?, field("tracestate")?);
        let trace = TraceContext::new(traceparent.clone(), tracestate.clone());
        if trace.traceparent != traceparent {
            return Err(EnvelopeError::Field("traceparent"));
        }
        if trace.tracestate != tracestate {
            return Err(EnvelopeError::Field("tracestate"));
        }
        Ok(trace)
    }

    pub(super) fn server_object(&mut self) -> Result<RawJson<'a>, EnvelopeError> {
        self.payload(|text| check_server_object(text).ok())
    }

    /// Parses the rest as JSON. Rejects surrounding white space, which the sending node has
    /// removed.
    pub(super) fn payload(
        &mut self,
        parse: impl FnOnce(&'a str) -> Option<RawJson<'a>>,
    ) -> Result<RawJson<'a>, EnvelopeError> {
        let text = self.rest("payload")?;
        let is_whole = |json: &RawJson<'_>| json.as_str().len() == text.len();
        parse(text).filter(is_whole).ok_or(EnvelopeError::Field("payload"))
    }
}

fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, EnvelopeError> {
    std::str::from_utf8(bytes).map_err(|_| EnvelopeError::Field(field))
}
