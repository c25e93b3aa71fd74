//! Spans of calls in sampled traces.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use deeperhub_node::trace::{ActiveSpan, Span, SpanKind, Tracer};
use deeperhub_protocol::message::{SpanContext, TraceContext};
use tracing::Instrument;

use crate::Api;

/// Records a span of the call. Handlers get it as the `traceparent` instead of the caller's, so
/// that publishes become its children.
pub(crate) async fn trace(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let tracer = api.node.tracer();
    let is_call = request.uri().path().starts_with("/v1/");
    if !tracer.is_recording() || !is_call {
        return next.run(request).await;
    }
    let began = Instant::now();
    let context = trace_context(request.headers());
    let parent = SpanContext::from_context(&context);
    let Some(span) = tracer.start(parent) else {
        if parent.is_none() {
            // The trace is not sampled; a publish must not decide again.
            set_traceparent(request.headers_mut(), Tracer::declined());
        }
        return next.run(request).await;
    };
    let span = span.with_tracestate(context.tracestate.as_deref());
    set_traceparent(request.headers_mut(), span.context());
    let scheme = if api.config.fixed().uses_tls() { "https" } else { "http" };
    let info = RequestInfo::of(&request, scheme);
    let response = next.run(request).instrument(span.log_span()).await;
    span.log_span().in_scope(|| {
        tracing::debug!(method = info.method, status = response.status().as_u16(), "Call answered");
    });
    tracer.record(|| info.into_span(span.with_start_time(began), &response));
    response
}

/// Returns the trace context in the headers. Several `tracestate` headers form one list; several
/// `traceparent` headers are invalid and give none.
fn trace_context(headers: &HeaderMap) -> TraceContext<'static> {
    let texts = |name| -> Vec<&str> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
    };
    let (parents, states) = (texts("traceparent"), texts("tracestate"));
    let [parent] = parents[..] else { return TraceContext::default() };
    let state = (!states.is_empty()).then(|| states.join(",").into());
    TraceContext::new(Some(parent.to_owned().into()), state)
}

fn set_traceparent(headers: &mut HeaderMap, span: SpanContext) {
    if let Ok(value) = HeaderValue::from_str(&span.to_string()) {
        headers.insert("traceparent", value);
    }
}

/// Attributes of a request, taken before its call runs.
#[derive(Debug)]
struct RequestInfo {
    method: String,
    scheme: &'static str,
    route: Option<String>,
    path: String,
    host: Option<String>,
    agent: Option<String>,
}

impl RequestInfo {
    fn of(request: &Request, scheme: &'static str) -> Self {
        let text = |name| -> Option<String> {
            let text = request.headers().get(name)?.to_str().ok()?;
            Some(text.chars().take(256).collect())
        };
        Self {
            // OpenTelemetry's HTTP conventions: unknown methods are `_OTHER`.
            method: match request.method().as_str() {
                known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH") => {
                    known.to_owned()
                }
                _ => "_OTHER".to_owned(),
            },
            scheme,
            route: request.extensions().get::<MatchedPath>().map(|matched| matched.as_str().to_owned()),
            path: request.uri().path().chars().take(1024).collect(),
            host: text(header::HOST),
            agent: text(header::USER_AGENT),
        }
    }

    fn into_span(self, span: ActiveSpan, response: &Response) -> Span {
        let Self { method, scheme, route, path, host, agent } = self;
        let name = match &route {
            Some(route) => format!("{method} {route}"),
            None => method.clone(),
        };
        let status = response.status();
        let fault = status.is_server_error().then(|| status.as_str().to_owned());
        span.end(Instant::now(), name, SpanKind::Server)
            .with("http.request.method", method)
            .with_some("http.route", route)
            .with("url.path", path)
            .with("url.scheme", scheme)
            .with("http.response.status_code", status.as_u16())
            .with_some("server.address", host)
            .with_some("user_agent.original", agent)
            .with_error(fault)
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_node::trace::{Sampler, SpanSink, TraceMetrics};

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for &(name, value) in pairs {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn several_tracestates_form_a_list_and_several_traceparents_are_invalid() {
        let whole =
            trace_context(&headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]));
        assert_eq!(whole.tracestate.as_deref(), Some("a=1,b=2"));
        assert!(trace_context(&headers(&[("traceparent", PARENT), ("traceparent", PARENT)])).is_empty());
        assert!(trace_context(&headers(&[("tracestate", "a=1")])).is_empty());
    }

    #[test]
    fn handlers_see_the_span_instead_of_the_callers() {
        let mut headers = headers(&[("traceparent", PARENT)]);
        set_traceparent(&mut headers, Tracer::declined());
        let seen = SpanContext::from_context(&trace_context(&headers));
        assert_eq!(seen, Some(Tracer::declined()));
        assert!(!Tracer::declined().is_sampled());
    }

    #[derive(Debug)]
    struct NoSink;

    impl SpanSink for NoSink {
        fn record(&self, _: Span) {}
    }

    #[test]
    fn spans_have_the_scheme_of_their_call() {
        let tracer = Tracer::new(Sampler::parent_based(1.0), Arc::new(NoSink), TraceMetrics::default());
        let request = Request::builder().uri("/v1/stats").body(axum::body::Body::empty()).unwrap();
        for scheme in ["http", "https"] {
            let info = RequestInfo::of(&request, scheme);
            let span = info.into_span(tracer.start(None).unwrap(), &Response::default());
            let scheme_of_span = span.attributes.iter().find(|(name, _)| *name == "url.scheme");
            assert_eq!(scheme_of_span, Some(&("url.scheme", scheme.into())));
        }
    }
}
