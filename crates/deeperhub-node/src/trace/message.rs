use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Instant;

use deeperhub_protocol::message::{Command, SpanContext, TraceContext};

use super::{ActiveSpan, HandshakeTrace, Span, SpanKind, Tracer};

/// What `messaging.system` says of us.
pub(crate) const SYSTEM: &str = "deeperhub";

/// The span of one message that is being handled.
#[derive(Debug)]
pub(crate) struct MessageSpan {
    pub(crate) span: ActiveSpan,
    /// Subscriptions that a publish matched.
    pub(crate) subscribers: Option<u64>,
}

impl MessageSpan {
    /// Begins a span for a client's message. `None`, as for nearly all: its trace is not sampled.
    #[inline]
    pub(crate) fn begin(
        tracer: &Tracer,
        own: &TraceContext<'_>,
        handshake: Option<&HandshakeTrace>,
    ) -> Option<Self> {
        let span = if own.traceparent.is_some() {
            tracer
                .start_for_client(SpanContext::from_context(own))?
                .with_tracestate(own.tracestate.as_deref())
        } else if let Some(handshake) = handshake {
            tracer.start_for_client(Some(handshake.span))?.with_tracestate(handshake.tracestate.as_deref())
        } else {
            tracer.start(None)?
        };
        Some(Self { span, subscribers: None })
    }

    /// Begins a span for a message that a server sends.
    pub(crate) fn begin_for_server(tracer: &Tracer, own: &TraceContext<'_>) -> Option<Self> {
        let span = tracer.start(SpanContext::from_context(own))?.with_tracestate(own.tracestate.as_deref());
        Some(Self { span, subscribers: None })
    }

    /// Ends it: `error` is the code that the message was answered with.
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
            Command::Subscribe { subscription } | Command::Unsubscribe { subscription } => {
                (SpanKind::Server, Some(subscription.as_str()), None)
            }
            _ => (SpanKind::Server, None, None),
        };
        self.describe(name, kind, topic, bytes)
            .with_some("messaging.client.id", client_id.map(str::to_owned))
            .with_some("client.address", peer.map(|peer| peer.ip().to_string()))
            .with_some("network.peer.address", peer.map(|peer| peer.ip().to_string()))
            .with_some("network.peer.port", peer.map(|peer| peer.port()))
            .failed(error)
    }

    /// Ends the span of a publish that no client made.
    pub(crate) fn end_of_publish(self, topic: &str, bytes: usize) -> Span {
        self.describe("publish", SpanKind::Producer, Some(topic), Some(bytes))
    }

    fn describe(self, name: &'static str, kind: SpanKind, topic: Option<&str>, bytes: Option<usize>) -> Span {
        let operation = (kind == SpanKind::Producer).then_some("send");
        self.span
            .end(Instant::now(), Cow::Borrowed(name), kind)
            .with("messaging.system", SYSTEM)
            .with("messaging.operation.name", name)
            .with_some("messaging.operation.type", operation)
            .with_some("messaging.destination.name", topic.map(str::to_owned))
            .with_some("messaging.message.body.size", bytes)
            .with_some("deeperhub.subscribers", self.subscribers)
    }
}
