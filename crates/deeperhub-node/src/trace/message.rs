//! Spans of messages.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Instant;

use deeperhub_protocol::message::{Command, SpanContext, TraceContext};

use super::{ActiveSpan, HandshakeTrace, Span, SpanKind, Tracer};

/// Value of `messaging.system`.
pub(crate) const MESSAGING_SYSTEM: &str = "deeperhub";

/// Span of a message that is being handled.
#[derive(Debug)]
pub(crate) struct MessageSpan {
    pub(crate) span: ActiveSpan,
    /// Subscriptions that a publish matched.
    pub(crate) subscribers: Option<u64>,
    /// Offset of the published message, if its topic has history.
    pub(crate) offset: Option<u64>,
}

impl MessageSpan {
    /// Starts a span for a client's message. The span belongs to the trace of the message, or else
    /// to the trace of the handshake, or else to a new trace. Returns `None` if the trace is not
    /// sampled.
    #[inline]
    pub(crate) fn begin(
        tracer: &Tracer,
        context: &TraceContext<'_>,
        handshake: Option<&HandshakeTrace>,
    ) -> Option<Self> {
        let span = if context.traceparent.is_some() {
            tracer
                .start_for_client(SpanContext::from_context(context))?
                .with_tracestate(context.tracestate.as_deref())
        } else if let Some(handshake) = handshake {
            tracer.start_for_client(Some(handshake.span))?.with_tracestate(handshake.tracestate.as_deref())
        } else {
            tracer.start(None)?
        };
        Some(Self { span, subscribers: None, offset: None })
    }

    /// Starts a span for a message of a backend, in the trace of the message or in a new trace.
    /// Returns `None` if the trace is not sampled.
    pub(crate) fn begin_for_server(tracer: &Tracer, context: &TraceContext<'_>) -> Option<Self> {
        let span =
            tracer.start(SpanContext::from_context(context))?.with_tracestate(context.tracestate.as_deref());
        Some(Self { span, subscribers: None, offset: None })
    }

    /// Ends the span. `error` is the code of the error reply.
    pub(crate) fn end(
        self,
        command: &Command<'_>,
        client_id: Option<&str>,
        peer: Option<SocketAddr>,
        error: Option<&'static str>,
    ) -> Span {
        let name = Command::TYPES.get(command.index()).copied().unwrap_or("message");
        let (kind, topic, bytes) = match command {
            Command::Publish { topic, message, .. } => {
                (SpanKind::Producer, Some(topic.as_str()), Some(message.as_str().len()))
            }
            Command::Subscribe(request) => (SpanKind::Server, Some(request.subscription.as_str()), None),
            Command::Unsubscribe { subscription } => (SpanKind::Server, Some(subscription.as_str()), None),
            Command::History(request) => (SpanKind::Server, Some(request.topic.as_str()), None),
            _ => (SpanKind::Server, None, None),
        };
        self.describe(name, kind, topic, bytes)
            .with_some("messaging.client.id", client_id.map(str::to_owned))
            .with_some("client.address", peer.map(|peer| peer.ip().to_string()))
            .with_some("network.peer.address", peer.map(|peer| peer.ip().to_string()))
            .with_some("network.peer.port", peer.map(|peer| peer.port()))
            .with_error(error)
    }

    /// Ends the span of a publish that did not come from a client.
    pub(crate) fn end_publish(self, topic: &str, bytes: usize) -> Span {
        self.describe("publish", SpanKind::Producer, Some(topic), Some(bytes))
    }

    fn describe(self, name: &'static str, kind: SpanKind, topic: Option<&str>, bytes: Option<usize>) -> Span {
        let operation = (kind == SpanKind::Producer).then_some("send");
        self.span
            .end(Instant::now(), Cow::Borrowed(name), kind)
            .with("messaging.system", MESSAGING_SYSTEM)
            .with("messaging.operation.name", name)
            .with_some("messaging.operation.type", operation)
            .with_some("messaging.destination.name", topic.map(str::to_owned))
            .with_some("messaging.message.body.size", bytes)
            .with_some("deeperhub.subscribers", self.subscribers)
            .with_some("deeperhub.offset", self.offset)
    }
}
