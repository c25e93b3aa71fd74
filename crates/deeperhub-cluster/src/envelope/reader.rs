//! Reading of an envelope's fields.

use std::borrow::Cow;

use deeperhub_protocol::message::{TraceContext, check_server_object};
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};

use super::EnvelopeError;

/// The bytes that are not parsed yet.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// A text that ends with these bytes, if all of it is UTF-8; empty otherwise. Most envelopes
    /// are such a text, and then their fields need no check of their own.
    text: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, text: "" }
    }

    /// Checks the bytes as a whole, because most of their fields are texts.
    pub(super) fn of_texts(bytes: &'a [u8]) -> Self {
        Self { bytes, text: simdutf8::basic::from_utf8(bytes).unwrap_or_default() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], EnvelopeError> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(EnvelopeError::Length)?;
        self.bytes = rest;
        Ok(taken)
    }

    #[inline]
    fn take_text(&mut self, length: usize, field: &'static str) -> Result<&'a str, EnvelopeError> {
        let left = self.bytes.len();
        let taken = self.take(length)?;
        // Without a text, the start is after its end.
        let start = self.text.len().wrapping_sub(left);
        match self.text.get(start..start.wrapping_add(length)) {
            Some(text) if !self.text.is_empty() => Ok(text),
            _ => Self::check_text(taken, field),
        }
    }

    /// Checks a field of an envelope that is not UTF-8 as a whole.
    #[cold]
    fn check_text(taken: &'a [u8], field: &'static str) -> Result<&'a str, EnvelopeError> {
        std::str::from_utf8(taken).map_err(|_| EnvelopeError::Field(field))
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
        self.take_text(length.into(), field)
    }

    pub(super) fn long_text(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        let length = u16::from_be_bytes(self.array()?);
        self.take_text(length.into(), field)
    }

    pub(super) fn rest(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        self.take_text(self.bytes.len(), field)
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
        // Most messages belong to no sampled trace, and both lengths are zero.
        if self.bytes.starts_with(&[0; 4]) {
            self.take(4)?;
            return Ok(TraceContext::default());
        }
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
