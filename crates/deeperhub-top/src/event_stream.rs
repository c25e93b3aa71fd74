//! Server-sent events (HTML Living Standard, section 9.2).

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{ApiClient, ApiError};

/// Maximum time without a byte. The server sends a comment every 15 seconds.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);

/// Maximum bytes of an event. A message has at most 1 GiB.
const MAX_EVENT_BYTES: usize = (1 << 30) + 4096;

/// An event of an [`EventStream`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerSentEvent {
    /// Name of the event; empty if the server sent none.
    pub name: String,
    /// The data, without the final line feed.
    pub data: String,
}

/// An open stream of server-sent events.
#[derive(Debug)]
pub struct EventStream<'a> {
    client: &'a ApiClient,
    body: Incoming,
    parser: Parser,
}

impl<'a> EventStream<'a> {
    pub(crate) fn new(client: &'a ApiClient, body: Incoming) -> Self {
        Self { client, body, parser: Parser::default() }
    }

    /// Returns the ID of the last event, with which a later stream can continue.
    #[must_use]
    pub fn last_event_id(&self) -> Option<&str> {
        self.parser.last_id.as_deref()
    }

    /// Returns the next event, or `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// If the connection fails, or if the server sends nothing for 45 seconds.
    pub async fn next(&mut self) -> Result<Option<ServerSentEvent>, ApiError> {
        loop {
            if let Some(event) = self.parser.next_event() {
                return Ok(Some(event));
            }
            if self.parser.buffered_bytes() > MAX_EVENT_BYTES {
                return Err(self.client.unexpected("it sent an event of more than 1 GiB".to_owned()));
            }
            let frame = tokio::time::timeout(SILENCE_TIMEOUT, self.body.frame()).await;
            match frame.map_err(|_| self.client.timed_out())? {
                None => return Ok(None),
                // Trailers are ignored.
                Some(Ok(frame)) => self.parser.add(frame.data_ref().map_or(&[][..], |data| data)),
                Some(Err(error)) => return Err(self.client.exchange_error(&error)),
            }
        }
    }
}

/// Parser of a stream of events.
#[derive(Debug, Default)]
struct Parser {
    /// Bytes that are not parsed yet.
    buffer: Vec<u8>,
    /// Number of bytes at the start of the buffer that are parsed.
    parsed: usize,
    /// Number of bytes after `parsed` that contain no line end.
    searched: usize,
    /// `true` if the last line ended with a carriage return, whose line feed may follow.
    skips_line_feed: bool,
    is_started: bool,
    event: ServerSentEvent,
    has_data: bool,
    last_id: Option<String>,
}

impl Parser {
    fn add(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.parsed);
        self.parsed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.parsed + self.event.data.len()
    }

    /// Returns the next complete event.
    fn next_event(&mut self) -> Option<ServerSentEvent> {
        loop {
            let rest = self.buffer.get(self.parsed..).unwrap_or_default();
            if self.skips_line_feed && !rest.is_empty() {
                self.skips_line_feed = false;
                if rest.starts_with(b"\n") {
                    self.parsed += 1;
                    continue;
                }
            }
            let unsearched = rest.get(self.searched..).unwrap_or_default();
            let Some(end) = unsearched.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.searched = rest.len();
                return None;
            };
            let (line, end) = rest.split_at(self.searched + end);
            self.skips_line_feed = end.starts_with(b"\r");
            self.parsed += line.len() + 1;
            self.searched = 0;
            let mut line = String::from_utf8_lossy(line).into_owned();
            if !std::mem::replace(&mut self.is_started, true) && line.starts_with('\u{feff}') {
                line.remove(0);
            }
            if let Some(event) = self.line(&line) {
                return Some(event);
            }
        }
    }

    /// Parses a line. Returns an event if the line ends one.
    fn line(&mut self, line: &str) -> Option<ServerSentEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            // Without data, nothing is dispatched.
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            // Comments, `retry`, and fields that are not known.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a stream that arrives in pieces of this size.
    fn parse(text: &str, piece: usize) -> (Vec<(String, String)>, Option<String>) {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for bytes in text.as_bytes().chunks(piece) {
            parser.add(bytes);
            events.extend(std::iter::from_fn(|| parser.next_event()).map(|event| (event.name, event.data)));
        }
        (events, parser.last_id)
    }

    #[test]
    fn events_are_parsed_whatever_the_pieces_and_line_ends() {
        let lines = "\u{feff}: hello|id: e:0||event: message|id: e:1|data: {\"é\":|data:1}||data:  x|retry: 1|data\
            |other: y||event: empty|id: e:2||:|data: last||data: unfinished";
        let expected = [("message", "{\"é\":\n1}"), ("", " x\n"), ("", "last")];
        let expected: Vec<_> =
            expected.iter().map(|(name, data)| ((*name).to_owned(), (*data).to_owned())).collect();
        for line_end in ["\n", "\r", "\r\n"] {
            let text = lines.replace('|', line_end);
            for piece in [1, 2, 3, 7, text.len()] {
                let (events, last_id) = parse(&text, piece);
                assert_eq!(events, expected, "{line_end:?} in pieces of {piece}");
                assert_eq!(last_id.as_deref(), Some("e:2"));
            }
        }
    }

    #[test]
    fn an_id_without_data_counts_and_one_with_a_null_does_not() {
        assert_eq!(parse("id: e:7\n\n", 3), (vec![], Some("e:7".to_owned())));
        assert_eq!(parse("id: e:7\n\nid: e\0\n\n", 3).1, Some("e:7".to_owned()));
        assert_eq!(parse("id: e:7\n\nid\n\n", 3).1, Some(String::new()));
        assert_eq!(parse("", 1), (vec![], None));
    }

    #[test]
    fn parsed_bytes_are_dropped() {
        let mut parser = Parser::default();
        for _ in 0..1000 {
            parser.add(b"data: 0123456789\n\n: comment\n\n");
            assert_eq!(parser.next_event().unwrap().data, "0123456789");
            assert_eq!(parser.next_event(), None);
        }
        assert!(parser.buffer.capacity() < 1000 && parser.buffered_bytes() == 0);
    }
}
