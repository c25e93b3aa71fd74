//! Parsing of a server's operations, in place.

use std::ops::Range;

/// Maximum length of the line of an operation.
const MAX_LINE_BYTES: usize = 4096;

/// Maximum length of the description of a server. It lists the servers of a NATS cluster.
const MAX_INFO_BYTES: usize = 256 << 10;

/// Maximum size of a message with its headers: no server can be set to accept more.
const MAX_MESSAGE_BYTES: usize = 65 << 20;

/// Number of fields after the verb of the longest operation, `HMSG`.
const MAX_FIELDS: usize = 5;

/// An operation of a server. Ranges are positions in the parsed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Description of the server, in JSON.
    Info(Range<usize>),
    Message(Message),
    Ping,
    Pong,
    /// Confirmation that servers send to verbose clients.
    Ok,
    /// Reason of a refusal, without quotes.
    Error(Range<usize>),
}

/// A message for a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Number of the subscription.
    pub(crate) sid: u64,
    pub(crate) subject: Range<usize>,
    /// Empty for a message that expects no answer.
    pub(crate) reply: Range<usize>,
    /// Empty for a message without headers.
    pub(crate) headers: Range<usize>,
    pub(crate) payload: Range<usize>,
}

/// Reason why bytes are no operation. The connection is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("the server sent a line that is too long")]
    Line,
    #[error("the server sent an unknown operation")]
    Unknown,
    #[error("the server sent an invalid message")]
    Message,
    #[error("the server sent a message that is too large")]
    TooLarge,
}

/// Result of a parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// An operation, and the position after it.
    Whole(Operation, usize),
    /// The rest of an operation is missing. With it, the operation has at least this many bytes.
    Partial(usize),
}

/// Parses the operation that begins at a position.
pub(crate) fn parse(bytes: &[u8], start: usize) -> Result<Parsed, ProtocolError> {
    let rest = bytes.get(start..).unwrap_or_default();
    let Some(length) = memchr::memchr(b'\n', rest) else {
        let max = if is_info(rest) { MAX_INFO_BYTES } else { MAX_LINE_BYTES };
        return if rest.len() < max { Ok(Parsed::Partial(rest.len() + 1)) } else { Err(ProtocolError::Line) };
    };
    let end = start + length + 1;
    let line = rest.get(..length).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Most operations are messages.
    if let Some(fields) = line.strip_prefix(b"MSG ") {
        if let Some((subject_len, sid, total)) = split_plain_fields(fields) {
            let subject = start + 4..start + 4 + subject_len;
            let subjects = (subject, start..start);
            return whole_message(bytes, start..end, sid, subjects, (0, total));
        }
        return parse_message(bytes, start..end, fields, start + 4);
    }
    if let Some(fields) = line.strip_prefix(b"HMSG ") {
        return parse_message(bytes, start..end, fields, start + 5);
    }
    let verb_len = line.iter().position(|byte| is_space(*byte)).unwrap_or(line.len());
    let (verb, argument) = line.split_at(verb_len);
    let argument = start + verb_len + argument.len() - argument.trim_ascii_start().len()..start + line.len();
    let operation = match verb.to_ascii_uppercase().as_slice() {
        b"PING" => Operation::Ping,
        b"PONG" => Operation::Pong,
        b"+OK" => Operation::Ok,
        b"-ERR" => Operation::Error(unquoted(bytes, argument)),
        b"INFO" => Operation::Info(argument),
        b"MSG" | b"HMSG" => {
            let fields = line.get(verb_len..).unwrap_or_default();
            return parse_message(bytes, start..end, fields, start + verb_len);
        }
        _ => return Err(ProtocolError::Unknown),
    };
    Ok(Parsed::Whole(operation, end))
}

/// Parses a message. The fields of its line begin at `start`.
fn parse_message(
    bytes: &[u8],
    line: Range<usize>,
    fields: &[u8],
    start: usize,
) -> Result<Parsed, ProtocolError> {
    let has_headers = bytes.get(line.start).is_some_and(|byte| byte.eq_ignore_ascii_case(&b'H'));
    if fields.len() > MAX_LINE_BYTES {
        return Err(ProtocolError::Line);
    }
    let (found, count) = split_fields(fields).ok_or(ProtocolError::Message)?;
    let field = |index: usize| {
        let range = found.get(index).filter(|_| index < count).cloned()?;
        fields.get(range)
    };
    let number = |index: usize| field(index).and_then(parse_number).ok_or(ProtocolError::Message);
    // The reply subject is optional, and comes before the sizes.
    let sizes = if has_headers { 2 } else { 1 };
    if count != 2 + sizes && count != 3 + sizes {
        return Err(ProtocolError::Message);
    }
    let sid = number(1)?;
    let total = number(count - 1)?;
    let header_len = if has_headers { number(count - 2)? } else { 0 };
    let subject_at =
        |index: usize| found.get(index).map_or(start..start, |range| start + range.start..start + range.end);
    let reply = if count == 3 + sizes { subject_at(2) } else { start..start };
    whole_message(bytes, line, sid, (subject_at(0), reply), (header_len, total))
}

/// Returns a message whose line is parsed, if its payload has arrived. The subjects are its own and
/// that of answers. The sizes are those of the headers, and of headers and payload.
#[inline]
fn whole_message(
    bytes: &[u8],
    line: Range<usize>,
    sid: u64,
    (subject, reply): (Range<usize>, Range<usize>),
    (header_len, total): (u64, u64),
) -> Result<Parsed, ProtocolError> {
    if header_len > total {
        return Err(ProtocolError::Message);
    }
    if total > MAX_MESSAGE_BYTES as u64 {
        return Err(ProtocolError::TooLarge);
    }
    let payload_start = line.end + header_len as usize;
    let payload_end = line.end + total as usize;
    match bytes.get(payload_end..payload_end + 2) {
        Some(b"\r\n") => {}
        Some(_) => return Err(ProtocolError::Message),
        None => return Ok(Parsed::Partial(payload_end + 2 - line.start)),
    }
    let (headers, payload) = (line.end..payload_start, payload_start..payload_end);
    Ok(Parsed::Whole(Operation::Message(Message { sid, subject, reply, headers, payload }), payload_end + 2))
}

/// Returns the length of the subject, the subscription and the size of a message without a reply
/// subject, whose fields are one space apart. Returns `None` for any other line.
#[inline]
fn split_plain_fields(fields: &[u8]) -> Option<(usize, u64, u64)> {
    let subject_len = memchr::memchr2(b' ', b'\t', fields).filter(|length| *length > 0)?;
    let (sid, rest) = split_number(fields.get(subject_len + 1..)?)?;
    let (total, rest) = split_number(rest.strip_prefix(b" ")?)?;
    (rest.is_empty() && fields.len() <= MAX_LINE_BYTES).then_some((subject_len, sid, total))
}

/// Returns the number at the start of a text, and the text after it.
#[inline]
fn split_number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at_checked(digits)?;
    Some((parse_number(digits)?, rest))
}

/// Returns the fields between spaces, and their number. Returns `None` if there are too many.
fn split_fields(line: &[u8]) -> Option<([Range<usize>; MAX_FIELDS], usize)> {
    let mut fields = [const { 0..0 }; MAX_FIELDS];
    let (mut count, mut start) = (0, 0);
    for at in memchr::memchr2_iter(b' ', b'\t', line) {
        if at > start {
            *fields.get_mut(count)? = start..at;
            count += 1;
        }
        start = at + 1;
    }
    if line.len() > start {
        *fields.get_mut(count)? = start..line.len();
        count += 1;
    }
    Some((fields, count))
}

const fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn is_info(line: &[u8]) -> bool {
    line.get(..4).is_none_or(|verb| verb.eq_ignore_ascii_case(b"INFO"))
}

/// Parses a number of decimal digits.
pub(in crate::nats) fn parse_number(digits: &[u8]) -> Option<u64> {
    // 19 digits always fit.
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits
        .iter()
        .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))
}

/// Returns the range of a text without the quotes around it.
fn unquoted(bytes: &[u8], range: Range<usize>) -> Range<usize> {
    match bytes.get(range.clone()) {
        Some([b'\'', .., b'\'']) => range.start + 1..range.end - 1,
        _ => range,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts<'b>(bytes: &'b [u8], ranges: &[&Range<usize>]) -> Vec<&'b str> {
        ranges.iter().map(|range| std::str::from_utf8(&bytes[(*range).clone()]).unwrap()).collect()
    }

    #[test]
    fn messages_are_parsed_with_and_without_reply_and_headers() {
        for (bytes, reply, headers, payload) in [
            ("MSG a.b 7 3\r\nxyz\r\n", "", "", "xyz"),
            ("MSG a.b 7 _INBOX.1 3\r\nxyz\r\n", "_INBOX.1", "", "xyz"),
            ("msg\ta.b  7\t0\r\n\r\n", "", "", ""),
            ("HMSG a.b 7 12 15\r\nNATS/1.0\r\n\r\nxyz\r\n", "", "NATS/1.0\r\n\r\n", "xyz"),
            ("HMSG a.b 7 r 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", "r", "NATS/1.0 503\r\n\r\n", ""),
            ("MSG a.b 7 4\r\n\r\n\r\n\r\n", "", "", "\r\n\r\n"),
        ] {
            // The position in a larger buffer does not matter.
            let buffer = format!("+OK\r\n{bytes}PING\r\n");
            let Ok(Parsed::Whole(Operation::Message(message), end)) = parse(buffer.as_bytes(), 5) else {
                panic!("{bytes}: {:?}", parse(buffer.as_bytes(), 5))
            };
            assert_eq!(message.sid, 7);
            let ranges = [&message.subject, &message.reply, &message.headers, &message.payload];
            assert_eq!(texts(buffer.as_bytes(), &ranges), ["a.b", reply, headers, payload], "{bytes}");
            assert_eq!(parse(buffer.as_bytes(), end), Ok(Parsed::Whole(Operation::Ping, buffer.len())));
        }
    }

    #[test]
    fn other_operations_are_parsed() {
        let bytes = b"INFO {\"a\":1} \r\n-ERR 'Authorization Violation'\r\n+ok\r\nPONG\r\n-ERR\r\npInG\n";
        let (mut at, mut shown) = (0, Vec::new());
        while at < bytes.len() {
            let Ok(Parsed::Whole(operation, end)) = parse(bytes, at) else { panic!("{at}") };
            shown.push(match &operation {
                Operation::Info(range) | Operation::Error(range) => texts(bytes, &[range])[0].to_owned(),
                other => format!("{other:?}"),
            });
            at = end;
        }
        assert_eq!(shown, ["{\"a\":1} ", "Authorization Violation", "Ok", "Pong", "", "Ping"]);
    }

    #[test]
    fn a_partial_operation_tells_how_much_is_missing() {
        let whole = b"MSG a 1 5\r\n12345\r\n";
        for length in 0..whole.len() {
            let Ok(Parsed::Partial(needed)) = parse(&whole[..length], 0) else { panic!("{length}") };
            assert!(needed > length && needed <= whole.len(), "{length}: {needed}");
        }
    }

    #[test]
    fn invalid_operations_are_refused() {
        for (bytes, error) in [
            (&b"HELLO\r\n"[..], ProtocolError::Unknown),
            (b"\r\n", ProtocolError::Unknown),
            (b"MSG a 1\r\n", ProtocolError::Message),
            (b"MSG a 1 r 2 3\r\n", ProtocolError::Message),
            (b"MSG a x 1\r\n", ProtocolError::Message),
            (b"MSG a 1 -1\r\n", ProtocolError::Message),
            (b"MSG a 1 99999999999999999999\r\n", ProtocolError::Message),
            (b"MSG a 1 99999999999\r\n", ProtocolError::TooLarge),
            (b"MSG a 1 2\r\nabcd", ProtocolError::Message),
            (b"HMSG a 1 5 4\r\nabcd\r\n", ProtocolError::Message),
            (b"HMSG a 1 5\r\nabcd\r\n", ProtocolError::Message),
        ] {
            assert_eq!(parse(bytes, 0), Err(error), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn lines_are_bounded() {
        let line = |length| vec![b'P'; length];
        assert!(matches!(parse(&line(MAX_LINE_BYTES - 1), 0), Ok(Parsed::Partial(_))));
        assert_eq!(parse(&line(MAX_LINE_BYTES), 0), Err(ProtocolError::Line));
        let info = |length| [b"INFO ", &line(length)[..]].concat();
        assert!(matches!(parse(&info(MAX_LINE_BYTES), 0), Ok(Parsed::Partial(_))));
        assert_eq!(parse(&info(MAX_INFO_BYTES), 0), Err(ProtocolError::Line));
        let subject = String::from_utf8(line(MAX_LINE_BYTES)).unwrap();
        assert_eq!(parse(format!("MSG {subject} 1 1\r\nx\r\n").as_bytes(), 0), Err(ProtocolError::Line));
    }
}
