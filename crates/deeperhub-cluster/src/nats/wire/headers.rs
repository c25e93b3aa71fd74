//! Headers of messages.

/// First line of headers without a status.
pub(super) const VERSION: &[u8] = b"NATS/1.0";

/// Headers of a received message. Nothing is parsed before it is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Headers<'a>(&'a [u8]);

impl<'a> Headers<'a> {
    /// Takes the headers as they came, or nothing for a message without headers.
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns the status that a server gives instead of a message: 503 for a request that nobody
    /// answers, 404 if there is no such message, 408 for a timeout.
    pub(crate) fn status(self) -> Option<u16> {
        let line = self.lines().next()?.strip_prefix(VERSION)?.trim_ascii_start();
        let digits = line.split(|byte| byte.is_ascii_whitespace()).next()?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// Returns the text of the status.
    pub(crate) fn description(self) -> &'a str {
        let line = self.lines().next().and_then(|line| line.strip_prefix(VERSION)).unwrap_or_default();
        let text = std::str::from_utf8(line).unwrap_or_default().trim_ascii_start();
        text.split_once(' ').map_or("", |(_, description)| description.trim_ascii())
    }

    /// Returns the last value of a name. What a server adds follows what a publisher wrote.
    pub(crate) fn last(self, name: &str) -> Option<&'a str> {
        let mut rest = self.0;
        while let Some(end) = memchr::memrchr(b'\n', rest) {
            let line = rest.get(end + 1..)?;
            if let Some(value) = line.strip_prefix(name.as_bytes()).and_then(|line| line.strip_prefix(b":")) {
                return std::str::from_utf8(value.trim_ascii()).ok();
            }
            rest = rest.get(..end)?;
        }
        None
    }

    fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_from_the_first_line() {
        for (bytes, status) in [
            (&b"NATS/1.0 503\r\n\r\n"[..], Some(503)),
            (b"NATS/1.0 404 Message Not Found\r\n\r\n", Some(404)),
            (b"NATS/1.0   204 EOB\r\nNats-Num-Pending: 3\r\n\r\n", Some(204)),
            (b"NATS/1.0\r\na: 503\r\n\r\n", None),
            (b"HTTP/1.1 503\r\n\r\n", None),
            (b"NATS/1.0 99999\r\n\r\n", None),
            (b"", None),
        ] {
            assert_eq!(Headers::new(bytes).status(), status, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_status_has_a_description() {
        let description = |bytes| Headers::new(bytes).description();
        assert_eq!(description(b"NATS/1.0 404 Message Not Found\r\n\r\n"), "Message Not Found");
        assert_eq!((description(b"NATS/1.0 503\r\n\r\n"), description(b"")), ("", ""));
    }

    #[test]
    fn the_last_value_of_a_name_counts() {
        let headers =
            Headers::new(b"NATS/1.0 200\r\na: 1\r\nb:two: parts\r\nempty:\r\na:  3 \r\nno colon\r\n\r\n");
        assert_eq!(headers.last("a"), Some("3"));
        assert_eq!(headers.last("b"), Some("two: parts"));
        assert_eq!(headers.last("empty"), Some(""));
        assert_eq!((headers.last("A"), headers.last("no colon"), headers.last("")), (None, None, None));
        assert_eq!(Headers::default().last("a"), None);
    }
}
