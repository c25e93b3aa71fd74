//! The stamp in each message: its stream, its sequence number and its send time.
//!
//! The payload is one JSON string: `bench/`, 32 hexadecimal digits and padding. The digits have a
//! fixed width, so that a new message is a copy of an encoded one with the digits overwritten.

use memchr::memmem;

/// Start of the string.
const PREFIX: &[u8; 6] = b"bench/";
/// Number of digits after the prefix.
const DIGIT_COUNT: usize = 32;

/// Minimum payload: quotes, prefix and digits.
pub(crate) const MIN_PAYLOAD_BYTES: usize = PREFIX.len() + DIGIT_COUNT + 2;
/// Offset of the digits from the opening quote.
pub(crate) const DIGITS_OFFSET: usize = PREFIX.len() + 1;
/// Maximum number of streams.
pub(crate) const MAX_STREAMS: usize = 1 << 24;
/// Highest sequence number.
const MAX_SEQUENCE: u64 = (1 << 40) - 1;

/// The stream, the sequence number and the send time of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Stream: one publisher's messages to one topic, or one connection's echoes.
    pub(crate) stream: u32,
    /// Sequence number in the stream, from 0.
    pub(crate) sequence: u64,
    /// Send time in a closed loop, or due time in an open loop, in nanoseconds since the epoch of
    /// the run.
    pub(crate) time: u64,
}

impl Stamp {
    /// Encodes the stamp as digits. A stream or a sequence number over the maximum wraps around.
    pub(crate) fn encode(self) -> [u8; DIGIT_COUNT] {
        let number = u128::from(self.stream) << 104
            | u128::from(self.sequence & MAX_SEQUENCE) << 64
            | u128::from(self.time);
        let mut digits = [0; DIGIT_COUNT];
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(number.to_be_bytes()) {
            *pair = [hex(byte >> 4), hex(byte & 15)];
        }
        digits
    }

    /// Decodes digits. Returns `None` if one of the characters is not a digit.
    #[inline]
    fn decode(digits: &[u8; DIGIT_COUNT]) -> Option<Self> {
        let mut bytes = [0; DIGIT_COUNT / 2];
        let mut invalid = 0;
        for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let (high, low) = (DIGIT_VALUES[usize::from(*high)], DIGIT_VALUES[usize::from(*low)]);
            invalid |= high | low;
            *byte = high << 4 | low & 15;
        }
        if invalid & NOT_A_DIGIT != 0 {
            return None;
        }
        let number = u128::from_be_bytes(bytes);
        Some(Self {
            stream: (number >> 104) as u32,
            sequence: (number >> 64) as u64 & MAX_SEQUENCE,
            time: number as u64,
        })
    }
}

const fn hex(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// Entry of `DIGIT_VALUES` for bytes that are not digits.
const NOT_A_DIGIT: u8 = 0x80;

/// Value of each byte as a hexadecimal digit.
const DIGIT_VALUES: [u8; 256] = {
    let mut values = [NOT_A_DIGIT; 256];
    let mut nibble = 0;
    while nibble < 16 {
        values[hex(nibble) as usize] = nibble;
        nibble += 1;
    }
    values
};

/// Returns the payload of a message: a JSON string of `size` bytes including its quotes, but at
/// least [`MIN_PAYLOAD_BYTES`].
///
/// The padding is pseudorandom text of 64 characters, which compresses like base64.
pub(crate) fn payload(size: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(size.max(MIN_PAYLOAD_BYTES));
    text.push_str("\"bench/");
    text.extend(std::iter::repeat_n('0', DIGIT_COUNT));
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    while text.len() + 1 < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from(ALPHABET[(state >> 58) as usize]));
    }
    text.push('"');
    text
}

/// Finds the stamp in a message.
#[derive(Debug)]
pub(crate) struct StampFinder {
    search: memmem::Finder<'static>,
    /// Offset of the last stamp. It is tried first, because most messages of a run have the same
    /// layout.
    last: usize,
}

impl StampFinder {
    pub(crate) fn new() -> Self {
        Self { search: memmem::Finder::new(PREFIX), last: 0 }
    }

    /// Returns the stamp in a message, or `None` if the message has none.
    #[inline]
    pub(crate) fn find(&mut self, message: &[u8]) -> Option<Stamp> {
        if let Some(stamp) = message.get(self.last..).and_then(read) {
            return Some(stamp);
        }
        let at = self.search.find(message)?;
        let stamp = read(message.get(at..)?)?;
        self.last = at;
        Some(stamp)
    }
}

/// Parses a prefix and digits at the start of `text`.
#[inline]
fn read(text: &[u8]) -> Option<Stamp> {
    let (prefix, rest) = text.split_first_chunk()?;
    if prefix != PREFIX {
        return None;
    }
    Stamp::decode(rest.first_chunk()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(stamp: Stamp, size: usize, before: &str) -> String {
        let mut payload = payload(size);
        let digits = stamp.encode();
        payload
            .replace_range(DIGITS_OFFSET..DIGITS_OFFSET + DIGIT_COUNT, std::str::from_utf8(&digits).unwrap());
        format!("{before}{payload}}}")
    }

    #[test]
    fn payloads_have_the_requested_size_or_the_minimum() {
        for (size, expected) in [
            (0, MIN_PAYLOAD_BYTES),
            (MIN_PAYLOAD_BYTES, MIN_PAYLOAD_BYTES),
            (MIN_PAYLOAD_BYTES + 1, MIN_PAYLOAD_BYTES + 1),
            (5000, 5000),
        ] {
            let payload = payload(size);
            assert_eq!(payload.len(), expected);
            assert!(serde_json::from_str::<String>(&payload).is_ok(), "{payload}");
        }
    }

    #[test]
    fn malformed_stamps_are_not_found() {
        let mut finder = StampFinder::new();
        for message in ["", "bench/", "bench/0123", "{\"type\":\"welcome\"}"] {
            assert_eq!(finder.find(message.as_bytes()), None, "{message}");
        }
        let stamp = Stamp { stream: 1, sequence: 2, time: 3 };
        for (from, to) in
            [("bench/", "bunch/"), ("bench/0", "bench/A"), ("bench/0", "bench/g"), ("bench/0", "bench/é")]
        {
            let text = message(stamp, 60, "").replacen(from, to, 1);
            assert_eq!(finder.find(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn stamps_are_found_at_any_offset(
            stamps in proptest::collection::vec((0..1_u32 << 24, 0..=MAX_SEQUENCE, any::<u64>(), 0..200_usize, "[a-z{}:\" ]{0,40}"), 1..8)
        ) {
            let mut finder = StampFinder::new();
            for (stream, sequence, time, size, before) in stamps {
                let stamp = Stamp { stream, sequence, time };
                let text = message(stamp, size, &before);
                prop_assert_eq!(finder.find(text.as_bytes()), Some(stamp));
            }
        }
    }
}
