//! Dispatch of requests to their calls, and of answers to hyper.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Method, Request, Response, header};
use axum::response::IntoResponse;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use crate::connection::Link;
use crate::error::ApiError;

/// Maximum bytes of an answer that is not counted: even at the connection limit, these take little
/// memory.
const SMALL_ANSWER: u64 = 8 * 1024;

/// Maximum bytes of an answer that hyper gets at once.
const SLICE_BYTES: usize = 64 * 1024;

/// Maximum bytes of an unread body that is left to hyper to discard.
const SMALL_BODY: u64 = 4 * 1024;

/// Marker for an answer that has no end of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IsStream;

/// Service for the calls of one connection.
pub(crate) struct Calls {
    router: TowerToHyperService<Router>,
    link: Arc<Link>,
    max_bytes: usize,
}

impl Calls {
    pub(crate) fn new(router: Router, link: Arc<Link>, max_bytes: usize) -> Self {
        Self { router: TowerToHyperService::new(router), link, max_bytes }
    }
}

impl Service<Request<Incoming>> for Calls {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let link = Arc::clone(&self.link);
        let body = request.body().size_hint();
        link.begin_call(!request.body().is_end_stream());
        let is_health = is_health(request.uri().path());
        let may_go_on = link.permit.begin_request(is_health);
        let (router, max_bytes) = (self.router.clone(), self.max_bytes);
        Box::pin(async move {
            let is_small = body.upper().is_some_and(|bytes| bytes <= SMALL_BODY)
                && !request.headers().contains_key(header::EXPECT);
            let is_read_only = matches!(*request.method(), Method::GET | Method::HEAD);
            let is_admitted = may_go_on || link.permit.wait_for_turn().await;
            request.extensions_mut().insert(Arc::clone(&link));
            let mut response = if is_admitted {
                let Ok(response) = router.call(request).await;
                response
            } else {
                ApiError::too_many_connections().into_response()
            };
            let mut lease = None;
            if let Some(bytes) = response.body().size_hint().exact()
                && bytes > SMALL_ANSWER
            {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                let held = lease.insert(link.permit.metrics().lease());
                if !is_read_only || is_health {
                    // The call was carried out, or is a health check: it is answered in any case.
                    held.grow(bytes);
                } else if !held.try_grow(bytes, max_bytes) {
                    response = ApiError::overloaded().into_response();
                }
            }
            let is_stream = response.extensions().get::<IsStream>().is_some();
            if is_stream || !link.permit.is_regular() || !(is_small || link.is_body_read()) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            link.begin_answer(is_stream, lease);
            Ok(response.map(|inner| Answer { inner, rest: Bytes::new(), link }))
        })
    }
}

/// Returns `true` if a path is always answered, however many requests are being served.
fn is_health(path: &str) -> bool {
    path.starts_with("/health/") || path == "/metrics"
}

/// Body of an answer. It goes to hyper in slices, and tells its connection when it ends.
pub(crate) struct Answer {
    inner: Body,
    rest: Bytes,
    link: Arc<Link>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let slice = this.rest.split_to(this.rest.len().min(SLICE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.link.end_answer();
    }
}
