use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use deeperhub_protocol::message::SpanContext;

/// A finished span of a sampled trace.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Span {
    /// Of a small set: what differs is in the attributes.
    pub name: Cow<'static, str>,
    /// Which side of an exchange it is.
    pub kind: SpanKind,
    /// Its own ids.
    pub context: SpanContext,
    /// The span above it; `None` at the root of a trace.
    pub parent: Option<SpanContext>,
    /// Whether that is another program's.
    pub parent_is_remote: bool,
    /// W3C `tracestate` of the trace, as it came.
    pub tracestate: Option<Arc<str>>,
    /// When it began.
    pub start: SystemTime,
    /// When it ended, never before it began.
    pub end: SystemTime,
    /// Names and values, by OpenTelemetry's semantic conventions where these have one.
    pub attributes: Vec<Attribute>,
    /// Spans that caused it without standing above it.
    pub links: Vec<SpanContext>,
    /// What went wrong (`error.type`), if it did.
    pub error: Option<Cow<'static, str>>,
}

/// A name and its value.
pub type Attribute = (&'static str, Value);

impl Span {
    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Adds an attribute where there is a value.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Says that it failed, and how (`error.type`), where it did.
    #[must_use]
    pub fn with_error(mut self, error: Option<impl Into<Cow<'static, str>>>) -> Self {
        self.error = error.map(Into::into);
        self
    }

    /// Says that the parent is of this program.
    #[must_use]
    pub fn with_local_parent(mut self) -> Self {
        self.parent_is_remote = false;
        self
    }

    /// Links the span to another.
    #[must_use]
    pub fn with_link(mut self, to: Option<SpanContext>) -> Self {
        self.links.extend(to);
        self
    }
}

/// Which side of an exchange a span is, as OpenTelemetry tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SpanKind {
    /// Within the program.
    Internal,
    /// Answers a request.
    Server,
    /// Sends what others will get later.
    Producer,
    /// Gets what others have sent.
    Consumer,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// Yes or no.
    Flag(bool),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Integer(number.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}
