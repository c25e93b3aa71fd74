//! Trace context and span of a client's handshake.

use std::time::Instant;

use deeperhub_listener::Peer;
use deeperhub_protocol::handshake::{Refusal, Request};
use deeperhub_protocol::message::{SpanContext, TraceContext};

use super::{ActiveSpan, Span, SpanKind, Tracer};

/// Trace context of a client's handshake. The client's messages belong to this trace unless they
/// name their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HandshakeTrace {
    pub(crate) span: SpanContext,
    pub(crate) tracestate: Option<Box<str>>,
}

impl HandshakeTrace {
    /// Reads the trace context from the headers. Returns `None` unless there is exactly one
    /// `traceparent` and it is valid (W3C Trace Context section 3.2.1).
    pub(crate) fn from_request(request: &Request) -> Option<Box<Self>> {
        let mut parents = request.headers("traceparent");
        let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
        // Several headers of this name form one list (section 3.3.1).
        let states: Vec<_> = request.headers("tracestate").collect();
        let state = (!states.is_empty()).then(|| states.join(","));
        let context = TraceContext::new(Some(parent.into()), state.map(Into::into));
        let span = SpanContext::from_context(&context)?;
        let tracestate = context.tracestate.map(|state| state.into_owned().into_boxed_str());
        Some(Box::new(Self { span, tracestate }))
    }
}

/// Span of a handshake: an HTTP request that ends in an upgrade or a refusal.
#[derive(Debug)]
pub(crate) struct HandshakeSpan {
    span: ActiveSpan,
    /// Span name: method and path of the request.
    name: String,
    attributes: Vec<super::Attribute>,
}

impl HandshakeSpan {
    /// Starts the span. Returns `None` if the trace is not sampled, or if spans are not recorded.
    pub(crate) fn begin(
        tracer: &Tracer,
        trace: Option<&HandshakeTrace>,
        request: &Request,
        peer: &Peer,
    ) -> Option<Self> {
        if !tracer.is_recording() {
            return None;
        }
        let span = tracer
            .start_for_client(trace.map(|trace| trace.span))?
            .with_tracestate(trace.and_then(|trace| trace.tracestate.as_deref()))
            .with_start_time(peer.accepted_at);
        // The path is one of the served paths. The query is left out, as it may contain a token.
        let mut attributes: Vec<super::Attribute> = vec![
            ("http.request.method", request.method().to_owned().into()),
            ("http.route", request.path().to_owned().into()),
            ("url.path", request.path().to_owned().into()),
            ("url.scheme", if peer.tls { "wss" } else { "ws" }.into()),
            ("network.protocol.name", "http".into()),
            ("network.protocol.version", "1.1".into()),
            ("network.peer.address", peer.address.ip().to_string().into()),
            ("network.peer.port", peer.address.port().into()),
            ("client.address", peer.address.ip().to_string().into()),
        ];
        if let Some(agent) = request.header("user-agent") {
            attributes.push(("user_agent.original", truncated(agent).into()));
        }
        if let Some(host) = request.host() {
            attributes.push(("server.address", truncated(host).into()));
        }
        Some(Self { span, name: format!("{} {}", request.method(), request.path()), attributes })
    }

    /// Ends and records the span. `refusal` is `None` if the handshake was accepted.
    pub(crate) fn end(self, tracer: &Tracer, refusal: Option<&Refusal>) {
        let Self { span, name, attributes } = self;
        tracer.record(|| {
            let mut ended: Span = span.end(Instant::now(), name, SpanKind::Server);
            ended.attributes = attributes;
            let status = refusal.map_or(101, |refusal| refusal.status);
            // A 4xx refusal is the client's error, so the server's span has none.
            let server_error = refusal.filter(|refusal| refusal.status >= 500).map(|refusal| refusal.code);
            ended
                .with("http.response.status_code", status)
                .with_some("deeperhub.refusal", refusal.map(|refusal| refusal.code))
                .with_error(server_error)
        });
    }
}

/// Truncates a header's value. Bounds the memory of spans, because clients choose its length.
fn truncated(text: &str) -> String {
    text.chars().take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use deeperhub_protocol::handshake::Parsed;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn check(headers: &str, expected: Option<Option<&str>>) {
        let head = format!("GET /ws HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let Ok(Parsed::Complete { request, .. }) = Request::parse(head.as_bytes()) else {
            panic!("{head:?} is a request");
        };
        let trace = HandshakeTrace::from_request(&request);
        let state = trace.as_ref().map(|trace| trace.tracestate.as_deref());
        assert_eq!(state, expected, "{headers:?}");
    }

    #[test]
    fn the_trace_context_is_read_from_headers() {
        check(&format!("TraceParent: {PARENT}\r\n"), Some(None));
        check(
            &format!("traceparent: {PARENT}\r\ntracestate: a=1\r\ntracestate: b=2\r\n"),
            Some(Some("a=1,b=2")),
        );
        check("", None);
        check("traceparent: 00-1-2-3\r\n", None);
        check("tracestate: a=1\r\n", None);
        check(&format!("traceparent: {PARENT}\r\ntraceparent: {PARENT}\r\n"), None);
    }
}
