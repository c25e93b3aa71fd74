//! The head of an HTTP/1.1 request.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::Refusal;

/// Default maximum length of a request head in bytes. It is large enough for a long token.
pub const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Default maximum number of header lines.
pub const MAX_HEADERS: usize = 96;

/// Limits on the size of a request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Maximum length of the head in bytes. A value over 65,535 acts like 65,535. Default
    /// [`MAX_HEAD_BYTES`].
    pub max_bytes: usize,
    /// Maximum number of header lines. With a value over [`MAX_HEADERS`], each parse allocates
    /// memory. Default [`MAX_HEADERS`].
    pub max_lines: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { max_bytes: MAX_HEAD_BYTES, max_lines: MAX_HEADERS }
    }
}

/// A limit of [`HeadLimits`] that a request head exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadLimit {
    /// The length of the head in bytes.
    Bytes,
    /// The number of header lines.
    Lines,
}

/// Error for a request head that is malformed or exceeds a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadError {
    /// The response to send, which is always 400 `bad_handshake`.
    pub refusal: Refusal,
    /// The limit that the head exceeds; `None` if the head is malformed.
    pub limit: Option<HeadLimit>,
}

impl From<Refusal> for HeadError {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, limit: None }
    }
}

/// A parsed request head. Header names are case-insensitive.
///
/// The `Debug` form shows neither the query nor the headers, because both can contain a token.
#[derive(Clone)]
pub struct Request {
    /// The received bytes, up to and including the blank line.
    head: Box<[u8]>,
    method: ByteRange,
    /// The authority of a target in absolute form (`http://example.com/ws`).
    authority: Option<ByteRange>,
    path: ByteRange,
    query: Option<ByteRange>,
    headers: Box<[HeaderLine]>,
    version: HttpVersion,
}

/// The name and the trimmed value of a header line.
#[derive(Debug, Clone, Copy)]
struct HeaderLine {
    name: ByteRange,
    value: ByteRange,
}

/// A byte range in the head, which is shorter than 64 KiB.
#[derive(Debug, Clone, Copy, Default)]
struct ByteRange {
    start: u16,
    end: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HttpVersion {
    Http10,
    Http11,
}

/// The result of parsing a buffer.
#[derive(Debug)]
pub enum Parsed {
    /// The head is incomplete. The caller reads more bytes and parses the whole buffer again.
    Partial,
    /// The head is complete.
    Complete {
        /// The parsed head.
        request: Request,
        /// The length of the head. Any bytes after it are frames of a client that did not wait for
        /// the response.
        head_bytes: usize,
    },
}

impl Request {
    /// Parses a request head from the start of `buffer`.
    ///
    /// # Errors
    ///
    /// Returns 400 `bad_handshake` if the request is not HTTP/1, or exceeds [`MAX_HEAD_BYTES`] or
    /// [`MAX_HEADERS`]. Returns it also if the target is neither a path nor an HTTP or WebSocket
    /// URL. Does not check the handshake's headers; [`Self::check_upgrade`] does.
    pub fn parse(buffer: &[u8]) -> Result<Parsed, Refusal> {
        Self::parse_within(buffer, HeadLimits::default()).map_err(|error| error.refusal)
    }

    /// Parses a request head like [`Self::parse`], with other limits.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Self::parse`], and the limit that the head exceeds.
    pub fn parse_within(buffer: &[u8], limits: HeadLimits) -> Result<Parsed, HeadError> {
        // `ByteRange` stores positions in 16 bits.
        let max_head_bytes = limits.max_bytes.min(usize::from(u16::MAX));
        // A header line has at least four bytes, so the head cannot have more lines than this.
        let max_lines = limits.max_lines.min(max_head_bytes / 4);
        let mut inline_headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut heap_headers = Vec::new();
        let headers = match inline_headers.get_mut(..max_lines) {
            Some(headers) => headers,
            None => {
                heap_headers.resize(max_lines, httparse::EMPTY_HEADER);
                &mut heap_headers[..]
            }
        };
        let mut parsed = httparse::Request::new(headers);
        let within_limit = &buffer[..buffer.len().min(max_head_bytes)];
        let head_bytes = match parsed.parse(within_limit) {
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Ok(httparse::Status::Partial) if buffer.len() >= max_head_bytes => {
                let message = format!("The request head is over {max_head_bytes} bytes.");
                return Err(HeadError {
                    refusal: Refusal::bad_handshake(message),
                    limit: Some(HeadLimit::Bytes),
                });
            }
            Ok(httparse::Status::Partial) => return Ok(Parsed::Partial),
            Err(httparse::Error::TooManyHeaders) => {
                let message = format!("The request has more than {max_lines} header lines.");
                return Err(HeadError {
                    refusal: Refusal::bad_handshake(message),
                    limit: Some(HeadLimit::Lines),
                });
            }
            Err(error) => return Err(malformed(error).into()),
        };
        let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
            return Err(Refusal::bad_handshake("The request line is incomplete.").into());
        };
        let head = &within_limit[..head_bytes];
        let target = Target::parse(target)?;
        let request = Self {
            method: ByteRange::of_slice(head, method),
            authority: target.authority.map(|authority| ByteRange::of_slice(head, authority)),
            path: ByteRange::of_slice(head, target.path),
            query: target.query.map(|query| ByteRange::of_slice(head, query)),
            headers: parsed
                .headers
                .iter()
                .map(|header| HeaderLine {
                    name: ByteRange::of_slice(head, header.name),
                    value: ByteRange::of_slice(head, header.value.trim_ascii()),
                })
                .collect(),
            version: if parsed.version == Some(0) { HttpVersion::Http10 } else { HttpVersion::Http11 },
            head: Box::from(head),
        };
        Ok(Parsed::Complete { request, head_bytes })
    }

    /// Returns the method as received.
    #[must_use]
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// Returns the path without the query, still percent-encoded. Returns `/` for a URL without a
    /// path.
    #[must_use]
    pub fn path(&self) -> &str {
        let path = self.text(self.path);
        if path.is_empty() { "/" } else { path }
    }

    /// Returns the query after the `?` of the target, still percent-encoded, or `None` without a
    /// `?`.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.map(|query| self.text(query))
    }

    /// Returns the query's first value for `name`, decoded as form data (`%41` and `+`). Returns
    /// `None` if the query has no value for `name` or the first value is not UTF-8.
    #[must_use]
    pub fn query_value(&self, name: &str) -> Option<Cow<'_, str>> {
        self.query_values(name).next()?
    }

    /// Returns the query's decoded values for `name` in order. A value that is not UTF-8 is `None`.
    pub fn query_values<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = Option<Cow<'a, str>>> + use<'a, 'n> {
        let pairs = self.query().into_iter().flat_map(|query| query.split('&'));
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let matching = pairs.filter(move |(key, _)| form_decode(key).is_some_and(|key| key == name));
        matching.map(|(_, value)| form_decode(value))
    }

    /// Returns the first value of a header, trimmed. Skips values that are not UTF-8.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.raw_headers(name).find_map(|value| std::str::from_utf8(value).ok())
    }

    /// Returns the values of a header in order, trimmed. Skips values that are not UTF-8.
    pub fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.raw_headers(name).filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// Returns the host and port of the request: those of the target if it is a URL (RFC 9112
    /// section 3.2.2), otherwise the `Host` header.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self.authority {
            Some(authority) => Some(self.text(authority)),
            None => self.header("host"),
        }
    }

    /// Returns the `Origin` header: the origin of the page that connects.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        self.header("origin")
    }

    /// Returns the offered subprotocols in order, over all `Sec-WebSocket-Protocol` lines.
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> + '_ {
        self.list("sec-websocket-protocol")
    }

    /// Returns the raw values of all `Sec-WebSocket-Extensions` lines in order, for
    /// `deflate::negotiate`.
    pub fn extensions(&self) -> impl Iterator<Item = &[u8]> + '_ {
        self.raw_headers("sec-websocket-extensions")
    }

    /// Returns the elements of a comma-separated header, over all of its lines.
    pub(super) fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        let elements = self.headers(name).flat_map(|value| value.split(','));
        elements.map(str::trim_ascii).filter(|element| !element.is_empty())
    }

    pub(super) fn version(&self) -> HttpVersion {
        self.version
    }

    /// Returns the raw values of a header in order, trimmed.
    pub fn raw_headers<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let matching = self.headers.iter().filter(move |header| {
            let header_name = self.head.get(header.name.range()).unwrap_or_default();
            header_name.eq_ignore_ascii_case(name.as_bytes())
        });
        matching.map(|header| self.head.get(header.value.range()).unwrap_or_default())
    }

    /// Returns a part of the head that httparse validated as text.
    fn text(&self, range: ByteRange) -> &str {
        let bytes = self.head.get(range.range()).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method())
            .field("path", &self.path())
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}

impl ByteRange {
    /// Returns the range of `slice`, which must be a slice of `head`.
    fn of_slice(head: &[u8], slice: impl AsRef<[u8]>) -> Self {
        let slice = slice.as_ref();
        let start = slice.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
        match (u16::try_from(start), u16::try_from(start.wrapping_add(slice.len()))) {
            (Ok(start), Ok(end)) if usize::from(end) <= head.len() => Self { start, end },
            // The slice is empty: only an empty slice can point outside `head`.
            _ => Self::default(),
        }
    }

    fn range(self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

/// The parts of a request target (RFC 9112 section 3.2).
struct Target<'a> {
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Target<'a> {
    fn parse(target: &'a str) -> Result<Self, Refusal> {
        let (location, query) = match target.split_once('?') {
            Some((location, query)) => (location, Some(query)),
            None => (target, None),
        };
        if location.starts_with('/') || location == "*" {
            return Ok(Self { authority: None, path: location, query });
        }
        // The target is a URL (absolute form), as sent to proxies. Servers must accept it too.
        let Some((scheme, rest)) = location.split_once("://") else {
            return Err(Refusal::bad_handshake("The request's target is neither a path nor a URL."));
        };
        if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(Refusal::bad_handshake("The request's target has an unknown URL scheme."));
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(Refusal::bad_handshake("The request's target is a URL without a host."));
        }
        Ok(Self { authority: Some(authority), path, query })
    }
}

fn malformed(error: httparse::Error) -> Refusal {
    Refusal::bad_handshake(match error {
        httparse::Error::HeaderName => "The request has a malformed header name.",
        httparse::Error::HeaderValue => "The request has a malformed header value.",
        httparse::Error::Version => "The request is not HTTP/1.1.",
        _ => "The request line is malformed.",
    })
}

/// Decodes form data (`application/x-www-form-urlencoded`), as the browser's `URLSearchParams`
/// encodes it. A `%` without two hexadecimal digits after it is not changed. Returns `None` if the
/// result is not UTF-8.
fn form_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%'
            && let Some((digits, tail)) = rest.split_first_chunk()
            && let Some(escaped) = parse_hex(*digits)
        {
            rest = tail;
            decoded.push(escaped);
        } else {
            decoded.push(if byte == b'+' { b' ' } else { byte });
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// Parses two hexadecimal digits.
fn parse_hex([high, low]: [u8; 2]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(head: &str) -> Request {
        match Request::parse(head.as_bytes()) {
            Ok(Parsed::Complete { request, head_bytes }) => {
                assert_eq!(head_bytes, head.len());
                request
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused(buffer: &[u8]) -> String {
        let refusal = Request::parse(buffer).unwrap_err();
        assert_eq!((refusal.status, refusal.code), (400, "bad_handshake"));
        refusal.message.into_owned()
    }

    #[test]
    fn the_parts_of_a_head_are_parsed() {
        let request = parse(
            "GET /a%20b?x=1&y HTTP/1.1\r\nHost:example.com:8080\r\nX-Thing:  one \r\nx-thing: two\r\nEmpty:\r\n\r\n",
        );
        assert_eq!((request.method(), request.path(), request.query()), ("GET", "/a%20b", Some("x=1&y")));
        assert_eq!(request.host(), Some("example.com:8080"));
        assert_eq!(request.header("X-THING"), Some("one"));
        assert_eq!(request.headers("x-thing").collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!((request.header("empty"), request.header("absent")), (Some(""), None));
        assert_eq!(request.origin(), None);
    }

    #[test]
    fn bytes_after_the_head_are_not_consumed() {
        let buffer = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\x81\x80";
        let Ok(Parsed::Complete { head_bytes, .. }) = Request::parse(buffer) else { panic!() };
        assert_eq!(&buffer[head_bytes..], b"\x81\x80");
    }

    #[test]
    fn a_head_is_partial_until_its_blank_line() {
        let head = b"GET /ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\n\r\n";
        for cut in 0..head.len() {
            assert!(matches!(Request::parse(&head[..cut]), Ok(Parsed::Partial)), "{cut}");
        }
    }

    #[test]
    fn a_url_as_target_overrides_the_host_header() {
        let request = parse("GET ws://other.example:81/ws?a HTTP/1.1\r\nHost: example.com\r\n\r\n");
        assert_eq!(
            (request.host(), request.path(), request.query()),
            (Some("other.example:81"), "/ws", Some("a"))
        );
        let request = parse("GET http://example.com HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((request.path(), request.query()), ("/", None));
        let request = parse("GET HTTPS://example.com?q=/ HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(
            (request.host(), request.path(), request.query()),
            (Some("example.com"), "/", Some("q=/"))
        );
    }

    #[test]
    fn invalid_targets_are_rejected() {
        for target in ["example.com:443", "ws", "ftp://example.com/", "http:///ws", "://"] {
            refused(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        }
        assert_eq!(parse("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path(), "*");
    }

    #[test]
    fn requests_other_than_http_1_are_rejected_at_once() {
        for (start, message) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], "The request line is malformed."),
            (b"GET / HTTP/2.0\r\n\r\n", "The request is not HTTP/1.1."),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "The request has a malformed header name."),
            (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", "The request has a malformed header name."),
            (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", "The request has a malformed header value."),
        ] {
            assert_eq!(refused(start), message);
        }
    }

    #[test]
    fn a_head_over_the_limits_is_rejected() {
        let filler = |bytes: usize| {
            let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
            head.resize(bytes - 4, b'x');
            head.extend_from_slice(b"\r\n\r\n");
            head
        };
        assert!(matches!(Request::parse(&filler(MAX_HEAD_BYTES)), Ok(Parsed::Complete { .. })));
        for read in [MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1] {
            assert_eq!(refused(&filler(MAX_HEAD_BYTES + 1)[..read]), "The request head is over 32768 bytes.");
        }
        assert!(matches!(Request::parse(&filler(MAX_HEAD_BYTES)[..MAX_HEAD_BYTES - 1]), Ok(Parsed::Partial)));
        for limit in [200, 40_000, usize::from(u16::MAX)] {
            let limits = HeadLimits { max_bytes: limit, ..HeadLimits::default() };
            let parsed = |bytes| Request::parse_within(&filler(bytes), limits);
            assert!(matches!(parsed(limit), Ok(Parsed::Complete { .. })));
            let error = parsed(limit + 1).unwrap_err();
            assert_eq!(error.refusal.message, format!("The request head is over {limit} bytes."));
            assert_eq!(error.limit, Some(HeadLimit::Bytes));
        }
        let none = HeadLimits { max_bytes: usize::MAX, max_lines: usize::MAX };
        assert!(Request::parse_within(&filler(1 << 16), none).is_err());
        let lines = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert_eq!(parse(&lines(MAX_HEADERS)).headers("x").count(), MAX_HEADERS);
        assert_eq!(refused(lines(MAX_HEADERS + 1).as_bytes()), "The request has more than 96 header lines.");
        for limit in [1, 8, 95, 97, 1000] {
            let limits = HeadLimits { max_lines: limit, ..HeadLimits::default() };
            let parsed = |count| Request::parse_within(lines(count).as_bytes(), limits);
            assert!(matches!(parsed(limit), Ok(Parsed::Complete { .. })), "{limit}");
            let error = parsed(limit + 1).unwrap_err();
            assert_eq!(error.refusal.message, format!("The request has more than {limit} header lines."));
            assert_eq!(error.limit, Some(HeadLimit::Lines));
        }
        let error = Request::parse_within(b"GET\r\n", HeadLimits::default()).unwrap_err();
        assert_eq!(error.limit, None);
    }

    #[test]
    fn values_that_are_not_utf8_are_skipped() {
        let head = b"GET / HTTP/1.1\r\nCity: M\xfcnchen\r\nCity: Berlin\r\n\r\n";
        let Ok(Parsed::Complete { request, .. }) = Request::parse(head) else { panic!() };
        assert_eq!(request.header("city"), Some("Berlin"));
        assert_eq!(request.headers("city").collect::<Vec<_>>(), ["Berlin"]);
    }

    #[test]
    fn subprotocols_are_listed_over_all_lines() {
        let request = parse(
            "GET / HTTP/1.1\r\nSec-WebSocket-Protocol: a, b\r\nHost: x\r\nsec-websocket-protocol: ,c ,\r\n\r\n",
        );
        assert_eq!(request.subprotocols().collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn extensions_are_returned_as_raw_lines() {
        let head = b"GET / HTTP/1.1\r\nSec-WebSocket-Extensions: a; b, c\r\nHost: x\r\n\
                     sec-websocket-extensions: \xff \r\n\r\n";
        let Ok(Parsed::Complete { request, .. }) = Request::parse(head) else { panic!() };
        assert_eq!(request.extensions().collect::<Vec<_>>(), [&b"a; b, c"[..], b"\xff"]);
    }

    #[test]
    fn query_values_are_decoded() {
        let request =
            parse("GET /?token=a.b%2Dc&x=1+%C3%BC%&token=second&%6eame=v&bad=%ff&flag HTTP/1.1\r\n\r\n");
        for (name, value) in [
            ("token", Some("a.b-c")),
            ("x", Some("1 ü%")),
            ("name", Some("v")),
            ("bad", None),
            ("flag", Some("")),
            ("absent", None),
        ] {
            assert_eq!(request.query_value(name).as_deref(), value, "{name}");
        }
        let tokens: Vec<_> = request.query_values("token").flatten().collect();
        assert_eq!(tokens, ["a.b-c", "second"]);
        assert_eq!(request.query_values("bad").collect::<Vec<_>>(), [None]);
        assert_eq!(parse("GET / HTTP/1.1\r\n\r\n").query_value("token"), None);
    }

    #[test]
    fn tokens_are_not_in_the_debug_form() {
        let request = parse("GET /ws?token=secret1 HTTP/1.1\r\nAuthorization: Bearer secret2\r\n\r\n");
        let debug = format!("{request:?}");
        assert!(debug.contains("/ws") && !debug.contains("secret"), "{debug}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn any_text_in_a_head_parses_without_panic(
            target in "[ -~]{0,20}",
            lines in proptest::collection::vec(("[!-~]{1,12}", "[ -~ü]{0,20}"), 0..6),
        ) {
            let mut head = format!("GET {target} HTTP/1.1\r\n");
            for (name, value) in &lines {
                head += &format!("{name}: {value}\r\n");
            }
            head += "\r\n";
            if let Ok(Parsed::Complete { request, head_bytes }) = Request::parse(head.as_bytes()) {
                prop_assert!(head_bytes <= head.len());
                prop_assert!(!request.path().is_empty());
                for (name, _) in &lines {
                    let _ = (request.header(name), request.query_value(name));
                }
                let _ = (request.host(), request.subprotocols().count(), request.check_upgrade());
            }
        }

        #[test]
        fn parsed_parts_equal_the_sent_parts(
            path in "/[a-z0-9/%._-]{0,20}",
            query in proptest::option::of("[a-z0-9=&%+.-]{0,20}"),
            lines in proptest::collection::vec(("x-[a-z]{1,3}", "([!-~]([ -~]{0,20}[!-~])?)?"), 0..8),
        ) {
            let target = query.as_ref().map_or(path.clone(), |query| format!("{path}?{query}"));
            let mut head = format!("GET {target} HTTP/1.1\r\n");
            for (name, value) in &lines {
                head += &format!("{name}:\t{value} \r\n");
            }
            head += "\r\n";
            let request = parse(&head);
            prop_assert_eq!(request.path(), path);
            prop_assert_eq!(request.query(), query.as_deref());
            for (name, _) in &lines {
                let sent: Vec<_> = lines.iter().filter(|line| line.0 == *name).map(|line| line.1.as_str()).collect();
                prop_assert_eq!(request.headers(name).collect::<Vec<_>>(), sent);
            }
        }
    }
}
