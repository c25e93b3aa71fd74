//! Finished spans, as a sink gets them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use deeperhub_protocol::message::SpanContext;

/// Finished span of a sampled trace.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Span {
    /// Span name, from a small set. Details are attributes.
    pub name: Cow<'static, str>,
    /// Role of the program in the operation.
    pub kind: SpanKind,
    /// IDs of the trace and of this span.
    pub context: SpanContext,
    /// Parent span. `None` for the root of a trace.
    pub parent: Option<SpanContext>,
    /// `true` if the parent belongs to another program.
    pub parent_is_remote: bool,
    /// W3C `tracestate` of the trace, unchanged.
    pub tracestate: Option<Arc<str>>,
    /// Start time.
    pub start: SystemTime,
    /// End time, never before the start.
    pub end: SystemTime,
    /// Attributes, named by OpenTelemetry's semantic conventions if these define them.
    pub attributes: Vec<Attribute>,
    /// Spans that caused this one without being its parent.
    pub links: Vec<SpanContext>,
    /// Error (`error.type`), if the operation failed.
    pub error: Option<Cow<'static, str>>,
}

/// Name and value of an attribute.
pub type Attribute = (&'static str, Value);

impl Span {
    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Adds an attribute if there is a value.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Sets the error (`error.type`).
    #[must_use]
    pub fn with_error(mut self, error: Option<impl Into<Cow<'static, str>>>) -> Self {
        self.error = error.map(Into::into);
        self
    }

    /// Marks the parent as a span of this program.
    #[must_use]
    pub fn with_local_parent(mut self) -> Self {
        self.parent_is_remote = false;
        self
    }

    /// Adds a link to another span.
    #[must_use]
    pub fn with_link(mut self, to: Option<SpanContext>) -> Self {
        self.links.extend(to);
        self
    }
}

/// Role of the program in an operation, as defined by OpenTelemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SpanKind {
    /// Internal operation.
    Internal,
    /// Handling of a request.
    Server,
    /// Request to another program, whose answer is awaited.
    Client,
    /// Sending of a message that others receive later.
    Producer,
    /// Receipt of a message that others sent.
    Consumer,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// Integer.
    Integer(i64),
    /// Floating-point number.
    Float(f64),
    /// Boolean.
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
