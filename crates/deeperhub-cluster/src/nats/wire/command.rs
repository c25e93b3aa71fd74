//! Writing of a client's operations. Any number of them share a buffer.

use super::headers::VERSION;

/// Appends `CONNECT` with options in JSON.
pub(crate) fn connect(out: &mut Vec<u8>, options: &str) {
    line(out, &[b"CONNECT ", options.as_bytes()]);
}

/// Appends a message without headers. The parts of the subject are joined, and must be valid.
pub(crate) fn publish(out: &mut Vec<u8>, subject: &[&[u8]], payload: &[u8]) {
    out.extend_from_slice(b"PUB ");
    write_subjects(out, subject, None);
    write_number(out, payload.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends a message that may have headers, and a subject for answers.
pub(crate) fn publish_with(
    out: &mut Vec<u8>,
    subject: &[&[u8]],
    reply: Option<&str>,
    headers: &[(&str, &str)],
    payload: &[u8],
) {
    out.extend_from_slice(if headers.is_empty() { b"PUB " } else { b"HPUB " });
    write_subjects(out, subject, reply);
    if !headers.is_empty() {
        write_number(out, headers_len(headers));
        out.push(b' ');
    }
    write_number(out, message_len(headers, payload));
    out.extend_from_slice(b"\r\n");
    if !headers.is_empty() {
        write_headers(out, headers);
    }
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Returns the size of a message, which the server limits.
pub(crate) fn message_len(headers: &[(&str, &str)], payload: &[u8]) -> usize {
    headers_len(headers) + payload.len()
}

fn headers_len(headers: &[(&str, &str)]) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let lines = headers.iter().map(|(name, value)| name.len() + value.len() + 4);
    VERSION.len() + 4 + lines.sum::<usize>()
}

fn write_headers(out: &mut Vec<u8>, headers: &[(&str, &str)]) {
    // A line break would end the header.
    let plain = |byte: u8| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte };
    out.extend_from_slice(VERSION);
    out.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        out.extend(name.bytes().map(plain));
        out.extend_from_slice(b": ");
        out.extend(value.bytes().map(plain));
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends `SUB`. Messages of the subscription come with its number.
pub(crate) fn subscribe(out: &mut Vec<u8>, subject: &str, sid: u64) {
    line(out, &[b"SUB ", subject.as_bytes(), b" ", sid.to_string().as_bytes()]);
}

/// Appends `UNSUB`.
pub(crate) fn unsubscribe(out: &mut Vec<u8>, sid: u64) {
    line(out, &[b"UNSUB ", sid.to_string().as_bytes()]);
}

/// Appends `PING`.
pub(crate) fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PING\r\n");
}

/// Appends `PONG`.
pub(crate) fn pong(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PONG\r\n");
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.extend_from_slice(b"\r\n");
}

fn write_subjects(out: &mut Vec<u8>, subject: &[&[u8]], reply: Option<&str>) {
    subject.iter().for_each(|part| out.extend_from_slice(part));
    out.push(b' ');
    if let Some(reply) = reply {
        out.extend_from_slice(reply.as_bytes());
        out.push(b' ');
    }
}

fn write_number(out: &mut Vec<u8>, number: usize) {
    let mut digits = [0; 20];
    let (mut rest, mut first) = (number, digits.len());
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        first = at;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(first..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_the_protocol_says() {
        let mut out = Vec::new();
        connect(&mut out, "{}");
        publish(&mut out, &[b"a.", b"b"], b"xyz");
        publish_with(&mut out, &[b"a"], Some("r"), &[], b"");
        publish_with(&mut out, &[b"a"], Some("r"), &[("K", "v"), ("L", "")], b"xyz");
        publish_with(&mut out, &[b"a"], None, &[("K", "x\r\ny: z")], b"");
        subscribe(&mut out, "a.>", 7);
        unsubscribe(&mut out, 7);
        ping(&mut out);
        pong(&mut out);
        let expected = "CONNECT {}\r\nPUB a.b 3\r\nxyz\r\nPUB a r 0\r\n\r\n\
                        HPUB a r 23 26\r\nNATS/1.0\r\nK: v\r\nL: \r\n\r\nxyz\r\n\
                        HPUB a 24 24\r\nNATS/1.0\r\nK: x  y: z\r\n\r\n\r\n\
                        SUB a.> 7\r\nUNSUB 7\r\nPING\r\nPONG\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn numbers_are_written_in_decimals() {
        for number in [0, 1, 9, 10, 99, 100, 65_536, usize::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }
}
