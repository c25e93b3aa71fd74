//! Service of one connection: admits requests, runs their calls, and passes responses to hyper.

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

use crate::connection::ConnectionState;
use crate::error::ApiError;

/// Maximum bytes of a response that is not counted. Even at the connection limit, such responses
/// take little memory.
const MAX_UNCOUNTED_RESPONSE_BYTES: u64 = 8 * 1024;

/// Maximum bytes of a response that hyper gets at once.
const MAX_FRAME_BYTES: usize = 64 * 1024;

/// Maximum bytes of an unread body that hyper discards. After a call with a larger unread body, the
/// connection closes.
const MAX_UNREAD_BODY_BYTES: u64 = 4 * 1024;

/// Marks a response that never ends by itself, such as a stream of events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndlessResponse;

/// Service for the calls of one connection.
pub(crate) struct CallService {
    router: TowerToHyperService<Router>,
    state: Arc<ConnectionState>,
    max_held_bytes: usize,
}

impl CallService {
    pub(crate) fn new(router: Router, state: Arc<ConnectionState>, max_held_bytes: usize) -> Self {
        Self { router: TowerToHyperService::new(router), state, max_held_bytes }
    }
}

impl Service<Request<Incoming>> for CallService {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let state = Arc::clone(&self.state);
        let body = request.body().size_hint();
        state.begin_call(!request.body().is_end_stream());
        let is_health_check = is_health_check(request.uri().path());
        let may_serve = state.permit.begin_request(is_health_check);
        let (router, max_held_bytes) = (self.router.clone(), self.max_held_bytes);
        Box::pin(async move {
            let is_body_small = body.upper().is_some_and(|bytes| bytes <= MAX_UNREAD_BODY_BYTES)
                && !request.headers().contains_key(header::EXPECT);
            let is_read_only = matches!(*request.method(), Method::GET | Method::HEAD);
            let is_admitted = may_serve || state.permit.wait_for_turn().await;
            request.extensions_mut().insert(Arc::clone(&state));
            let mut response = if is_admitted {
                let Ok(response) = router.call(request).await;
                response
            } else {
                ApiError::too_many_connections().into_response()
            };
            let mut held_bytes = None;
            if let Some(bytes) = response.body().size_hint().exact()
                && bytes > MAX_UNCOUNTED_RESPONSE_BYTES
            {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                let held = held_bytes.insert(state.permit.metrics().hold());
                if !is_read_only || is_health_check {
                    // The call has taken effect, or is a health check: it is always answered.
                    held.grow(bytes);
                } else if !held.try_grow(bytes, max_held_bytes) {
                    response = ApiError::overloaded().into_response();
                }
            }
            let is_stream = response.extensions().get::<EndlessResponse>().is_some();
            if is_stream || !state.permit.is_regular() || !(is_body_small || state.is_body_read()) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            state.begin_response(is_stream, held_bytes);
            Ok(response.map(|inner| ResponseBody { inner, unsent: Bytes::new(), state }))
        })
    }
}

/// Returns `true` if a path is always answered, however many requests are being served.
fn is_health_check(path: &str) -> bool {
    path.starts_with("/health/") || path == "/metrics"
}

/// Body of a response. It goes to hyper in slices, and its end is recorded in the connection.
pub(crate) struct ResponseBody {
    inner: Body,
    unsent: Bytes,
    state: Arc<ConnectionState>,
}

impl hyper::body::Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.unsent.is_empty() {
            match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.unsent = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let slice = this.unsent.split_to(this.unsent.len().min(MAX_FRAME_BYTES));
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.unsent.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, unsent) = (self.inner.size_hint(), self.unsent.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + unsent);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + unsent);
        }
        hint
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.state.end_response();
    }
}
