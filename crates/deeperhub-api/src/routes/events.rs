//! Events of the node as server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::{RawQuery, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use deeperhub_events::{EventFilter, EventStream, Received};
use futures_core::Stream;

use super::query::query_parameters;
use crate::Api;
use crate::dispatch::EndlessResponse;
use crate::error::ApiError;
use crate::metrics::EventStreamGuard;

/// Streams the events of this node from now on.
///
/// The response is server-sent events. `event:` is `websocket_connected`, `websocket_disconnected`,
/// `websocket_message_received`, `websocket_message_sent`, `websocket_binary_received` or
/// `websocket_error`. `data:` is an object with `client_id`, `at_unix_ms` and the fields of the
/// event. Binary payloads are in base64.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(("types" = Option<String>, Query, description = "Comma-separated names of events; default all")),
    responses(
        (status = 200, body = String, content_type = "text/event-stream",
            description = "Events until the caller disconnects; `events_lost` counts those that a slow observer missed"),
        (status = 400, body = ApiError, description = "`invalid_message`: an unknown name of an event"),
        (status = 503, body = ApiError, description = "`too_many_observers`: `--max-event-streams` are open, or half of `--max-api-connections`. `too_many_connections`: `--max-api-connections` are busy")
    )
))]
pub(crate) async fn events(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let observe = || {
        let mut filter = EventFilter::all();
        for (name, value) in query_parameters(query.as_deref())? {
            if name == "types" {
                filter = EventFilter::parse(&value)
                    .map_err(|error| ApiError::parameter("types", error.to_string()))?;
            }
        }
        let guard = admit_stream(&api)?;
        let stream = api.node.events(filter).ok_or_else(ApiError::too_many_observers)?;
        Ok(EventStreamBody { stream, _guard: guard })
    };
    match observe() {
        Ok(stream) => stream_response(stream),
        Err(error) => ApiError::into_response(error),
    }
}

/// Counts another stream of events until the guard is dropped.
///
/// # Errors
///
/// Returns 503 `too_many_observers` if there are as many as there may be.
pub(super) fn admit_stream(api: &Api) -> Result<EventStreamGuard, ApiError> {
    let config = api.config.fixed();
    // Streams are long-lived, so they must not take every connection.
    let max = config.max_event_streams.min(config.max_connections / 2).max(1);
    api.metrics.open_event_stream(max).ok_or_else(|| {
        tracing::warn!(limit = "max_event_streams", max, "Event stream limit reached");
        ApiError::too_many_observers()
    })
}

/// Returns a response of server-sent events, with comments that keep the connection alive.
pub(super) fn stream_response(
    stream: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let mut response = Sse::new(stream).keep_alive(KeepAlive::default()).into_response();
    response.extensions_mut().insert(EndlessResponse);
    response
}

/// Server-sent events of one observer.
struct EventStreamBody {
    stream: EventStream,
    _guard: EventStreamGuard,
}

impl Stream for EventStreamBody {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_recv(cx).map(|received| {
            let event = match received? {
                Received::Event(event) => {
                    let mut data = String::new();
                    event.write_json(&mut data);
                    Event::default().event(event.kind().name()).data(data)
                }
                Received::Lost(count) => {
                    Event::default().event("events_lost").data(format!("{{\"count\":{count}}}"))
                }
            };
            Some(Ok(event))
        })
    }
}
