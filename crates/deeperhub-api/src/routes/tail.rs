//! Messages of a topic with history as server-sent events.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use deeperhub_node::history::Gap;
use deeperhub_node::{
    Epoch, NodeHandle, NotRecovered, Position, StreamEvent, SubscribeError, SubscribeFrom, Subscriber,
};
use deeperhub_protocol::GapReason;
use futures_util::stream::{self, Stream, StreamExt};
use serde::Serialize;

use super::events::{admit_stream, stream_response};
use super::query::query_parameters;
use super::{PathParameter, topic_parameter};
use crate::Api;
use crate::error::ApiError;
use crate::metrics::EventStreamGuard;

/// Header with the ID of the last event that a client got before it reconnected.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Streams the messages of a topic with history: kept ones if `from` asks for them, then live ones.
///
/// The response is server-sent events. `event: message` has the `data` of a delivery. `event: gap`
/// has the `data` of the client message `gap`, for messages that are not kept any more. `id:` is
/// the position `EPOCH:OFFSET`. A client that reconnects with it in `Last-Event-ID`, as browsers do,
/// misses nothing that is kept. If the position is not good, the first event is a `gap`. The first
/// `id:` comes before any message. The stream counts as no subscriber of the topic.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/topics/{topic}/tail", tag = "history",
    params(
        ("topic" = String, Path, description = "Topic, percent-encoded", example = "chat.42"),
        ("from" = Option<String>, Query, description = "Start after the position `EPOCH:OFFSET`, or with the last messages: -10 for the last ten. Default: messages from now on", example = "-10"),
        ("Last-Event-ID" = Option<String>, Header, description = "Start after this position; overrides `from`"),
    ),
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "Messages until the caller disconnects"),
        (status = 400, body = ApiError, description = "`invalid_topic`, `invalid_message`"),
        (status = 404, body = ApiError, description = "`no_history`: no rule keeps messages of this topic"),
        (status = 429, body = ApiError, description = "`too_many_topics`: the topic's rule keeps messages of as many topics as it may, and all of them have subscribers"),
        (status = 503, body = ApiError, description = "`too_many_observers`: `--max-event-streams` are open, or half of `--max-api-connections`. `too_many_connections`: `--max-api-connections` are busy. `unavailable`: the cluster's store cannot be read")
    )
))]
pub(crate) async fn tail(
    State(api): State<Arc<Api>>,
    topic: PathParameter,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let open = async || {
        let topic = topic_parameter(topic)?;
        let from = start(&headers, query.as_deref())?;
        let guard = admit_stream(&api)?;
        Ok(Tail::open(&api.node, &topic, from).await?.into_stream(guard))
    };
    match open().await {
        Ok(stream) => stream_response(stream),
        Err(error) => ApiError::into_response(error),
    }
}

/// Returns the place at which a stream starts.
fn start(headers: &HeaderMap, query: Option<&str>) -> Result<SubscribeFrom, ApiError> {
    let mut from = SubscribeFrom::Newest;
    for (name, value) in query_parameters(query)? {
        if name == "from" {
            let last =
                value.strip_prefix('-').and_then(|digits| parse_number(digits).filter(|last| *last > 0));
            let after = || parse_position(&value).map(SubscribeFrom::After);
            let message = "invalid from; expected a position EPOCH:OFFSET, or a negative number of messages";
            from = last
                .map(SubscribeFrom::Last)
                .or_else(after)
                .ok_or_else(|| ApiError::parameter("from", message))?;
        }
    }
    let mut ids = headers.get_all(LAST_EVENT_ID).iter();
    if let Some(id) = ids.next() {
        let position = id.to_str().ok().and_then(parse_position).filter(|_| ids.next().is_none());
        let message = "invalid Last-Event-ID; expected one position EPOCH:OFFSET";
        let position = position.ok_or_else(|| ApiError::parameter("last-event-id", message))?;
        from = SubscribeFrom::After(position);
    }
    Ok(from)
}

/// Parses an ID of an event: `EPOCH:OFFSET`.
fn parse_position(text: &str) -> Option<Position> {
    let (epoch, offset) = text.split_once(':')?;
    // Streams in memory have dense offsets, so they do not need the time.
    Some(Position { epoch: Epoch::parse(epoch)?, offset: parse_number(offset)?, time: 0 })
}

/// Parses decimal digits.
fn parse_number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// A subscriber, and the gap before its first message.
struct Tail {
    subscriber: Subscriber,
    gap: Option<Gap>,
}

impl Tail {
    /// Subscribes to a topic. If the messages after a position are not kept any more, the
    /// subscriber starts where one would be that had stayed connected: at the oldest kept message.
    async fn open(node: &NodeHandle, topic: &str, from: SubscribeFrom) -> Result<Self, SubscribeError> {
        let mut subscriber = node.subscribe(topic, from).await?;
        let (SubscribeFrom::After(position), Some(Err(reason))) = (from, subscriber.recovery()) else {
            return Ok(Self { subscriber, gap: None });
        };
        if matches!(reason, NotRecovered::Epoch | NotRecovered::Trimmed) {
            // Dropped first, because the number of subscribers is limited.
            drop(subscriber);
            subscriber = node.subscribe(topic, SubscribeFrom::Last(u64::MAX)).await?;
        }
        let gap = gap_between(&position, &subscriber.start());
        Ok(Self { subscriber, gap: Some(gap) })
    }

    /// Returns the events. The first one has only the ID of the start, so that a client can also
    /// continue if it got no message.
    fn into_stream(self, guard: EventStreamGuard) -> impl Stream<Item = Result<Event, Infallible>> + Send {
        let Self { subscriber, gap } = self;
        let topic = subscriber.topic().clone();
        let start = subscriber.start();
        let first = match gap {
            Some(gap) => gap_event(topic.as_str(), &gap),
            None => Some(Event::default().id(event_id(&start))),
        };
        let events = stream::unfold((subscriber, guard), move |(mut subscriber, guard)| async move {
            let event = subscriber.next().await?;
            Some((event, (subscriber, guard)))
        });
        let events = events.filter_map(move |event| std::future::ready(stream_event(topic.as_str(), &event)));
        stream::iter(first).chain(events).map(Ok)
    }
}

/// Returns the gap for a client at `position` that continues at `start`.
fn gap_between(position: &Position, start: &Position) -> Gap {
    let is_trimmed = position.epoch == start.epoch && position.offset < start.offset;
    let (from, reason) = if is_trimmed {
        (Some(position.offset + 1), GapReason::Trimmed)
    } else {
        // The position is of another stream. If only its offset is too high, it is of a stream with
        // the same epoch that lost its end.
        (None, GapReason::Epoch)
    };
    Gap { epoch: start.epoch, from, to: start.offset, reason }
}

fn event_id(position: &Position) -> String {
    format!("{}:{}", position.epoch, position.offset)
}

/// Returns an event of a stream as a server-sent event.
fn stream_event(topic: &str, event: &StreamEvent) -> Option<Event> {
    match event {
        StreamEvent::Message(message) => {
            let id = event_id(&message.position()?);
            Some(Event::default().event("message").id(id).data(with_line_feeds(message.data())))
        }
        StreamEvent::Gap(gap) => gap_event(topic, gap),
        _ => None,
    }
}

/// Returns JSON with line feeds for all line breaks. They can only be white space between tokens.
/// Each line becomes a `data` line, and clients join the lines with line feeds.
fn with_line_feeds(json: &str) -> Cow<'_, str> {
    if json.contains('\r') {
        Cow::Owned(json.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(json)
    }
}

fn gap_event(topic: &str, gap: &Gap) -> Option<Event> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let position = gap.position(u64::try_from(time).unwrap_or(u64::MAX));
    let data = serde_json::to_string(&GapData::new(topic, gap, &position)).ok()?;
    Some(Event::default().event("gap").id(event_id(&position)).data(data))
}

/// The `data` of the client message `gap`.
#[derive(Serialize)]
struct GapData<'a> {
    topic: &'a str,
    time: u64,
    epoch: &'a str,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u64>,
    reason: &'static str,
}

impl<'a> GapData<'a> {
    fn new(topic: &'a str, gap: &Gap, position: &'a Position) -> Self {
        Self {
            topic,
            time: position.time,
            epoch: position.epoch.as_str(),
            offset: position.offset,
            from: gap.from,
            to: gap.from.map(|_| gap.to),
            reason: gap.reason.as_str(),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use deeperhub_protocol::message::ServerMessage;

    use super::*;

    fn parse(query: &str, ids: &[&'static str]) -> Option<SubscribeFrom> {
        let mut headers = HeaderMap::new();
        for id in ids {
            headers.append(LAST_EVENT_ID, HeaderValue::from_static(id));
        }
        start(&headers, Some(query)).ok()
    }

    fn position(epoch: &str, offset: u64) -> Position {
        Position { epoch: Epoch::parse(epoch).unwrap(), offset, time: 0 }
    }

    #[test]
    fn a_start_is_a_position_or_a_number_of_messages() {
        let after = |offset| Some(SubscribeFrom::After(position("k3J9aQx2", offset)));
        assert_eq!(parse("", &[]), Some(SubscribeFrom::Newest));
        assert_eq!(parse("from=-10", &[]), Some(SubscribeFrom::Last(10)));
        assert_eq!(parse("from=k3J9aQx2:0&other=1", &[]), after(0));
        assert_eq!(parse("from=k3J9aQx2%3A7", &[]), after(7));
        assert_eq!(parse("from=-10", &["k3J9aQx2:18446744073709551615"]), after(u64::MAX));
        for query in [
            "from=",
            "from=-",
            "from=-0",
            "from=0",
            "from=41",
            "from=--1",
            "from=x",
            "from=k3J9aQx2",
            "from=k3J9aQx2:",
            "from=:1",
            "from=k3J9aQx2:-1",
            "from=k3J9aQx2:1:1",
            "from=k3J9aQx:1",
            "from=k3J9aQx-:1",
            "from=k3J9aQx2:18446744073709551616",
            "from=%ff",
        ] {
            assert_eq!(parse(query, &[]), None, "{query}");
        }
        for ids in [&["-10"][..], &["x"], &[""], &["k3J9aQx2:1", "k3J9aQx2:2"]] {
            assert_eq!(parse("", ids), None, "{ids:?}");
        }
    }

    #[test]
    fn line_breaks_become_line_feeds() {
        assert_eq!(with_line_feeds("[1,\r\n2,\r3,\n4]\r\r\n"), "[1,\n2,\n3,\n4]\n\n");
        assert!(matches!(with_line_feeds("[\n\"\\r\"]"), Cow::Borrowed("[\n\"\\r\"]")));
    }

    #[test]
    fn a_gap_leads_from_a_position_to_the_start() {
        let (old, new) = (position("k3J9aQx2", 7), position("Zp0vT6bw", 3));
        let gap = |from: &Position, to: &Position| gap_between(from, to);
        let trimmed = Gap { epoch: old.epoch, from: Some(8), to: 20, reason: GapReason::Trimmed };
        assert_eq!(gap(&old, &position("k3J9aQx2", 20)), trimmed);
        assert_eq!(gap(&old, &new), Gap { epoch: new.epoch, from: None, to: 3, reason: GapReason::Epoch });
        let ahead = gap(&old, &position("k3J9aQx2", 5));
        assert_eq!((ahead.from, ahead.to, ahead.reason), (None, 5, GapReason::Epoch));
        let highest = gap(&position("k3J9aQx2", u64::MAX), &new);
        assert_eq!((highest.from, highest.to), (None, 3));
    }

    #[test]
    fn a_gap_has_the_data_of_the_client_message() {
        for from in [None, Some(4)] {
            let at = Position { time: 1_796_000_000_123, ..position("k3J9aQx2", 7) };
            let gap = Gap { epoch: at.epoch, from, to: at.offset, reason: GapReason::Trimmed };
            let data = serde_json::to_string(&GapData::new("a\"b", &gap, &at)).unwrap();
            let message = ServerMessage::Gap { topic: "a\"b", from, position: at, reason: gap.reason };
            let frame = String::from_utf8_lossy(message.to_frame().as_bytes()).into_owned();
            assert!(frame.contains(&format!(r#""data":{data}}}"#)), "{data} is not in {frame}");
        }
    }
}
