//! What a message of the bench carries: whose it is, which it is, and when it was meant to be sent.
//!
//! The payload is one JSON string, `"bench/` and 32 hexadecimal digits and padding: of fixed width, so that a message
//! is made by writing over the digits of one that was encoded before.

use memchr::memmem;

/// What the text begins with.
const PREFIX: &[u8; 6] = b"bench/";
/// Digits after it.
const DIGIT_COUNT: usize = 32;

/// Shortest payload in bytes: quotes, mark and digits.
pub(crate) const MIN_PAYLOAD_BYTES: usize = PREFIX.len() + DIGIT_COUNT + 2;
/// Where the digits are, from the opening quote.
pub(crate) const DIGITS_OFFSET: usize = PREFIX.len() + 1;
/// Streams that can be told apart.
pub(crate) const MAX_STREAMS: usize = 1 << 24;
/// Messages of a stream that can be told apart.
const MAX_SEQUENCE: u64 = (1 << 40) - 1;

/// A message's place in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The sequence that it belongs to: one publisher's messages to one topic, or one connection's echoes.
    pub(crate) stream: u32,
    /// Its number in the stream, from 0.
    pub(crate) sequence: u64,
    /// When it was to be sent, in nanoseconds since the run's epoch.
    pub(crate) time: u64,
}

impl Stamp {
    /// The digits; a stream or a sequence beyond the maximum wraps.
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

    /// Reads digits; `None` if there is anything else among them.
    #[inline]
    fn decode(digits: &[u8; DIGIT_COUNT]) -> Option<Self> {
        let mut bytes = [0; DIGIT_COUNT / 2];
        let mut wrong = 0;
        for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let (high, low) = (DIGIT_VALUES[usize::from(*high)], DIGIT_VALUES[usize::from(*low)]);
            wrong |= high | low;
            *byte = high << 4 | low & 15;
        }
        if wrong & NOT_A_DIGIT != 0 {
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

/// Marks what is no digit in `DIGIT_VALUES`.
const NOT_A_DIGIT: u8 = 0x80;

/// The value of each byte as a digit.
const DIGIT_VALUES: [u8; 256] = {
    let mut values = [NOT_A_DIGIT; 256];
    let mut nibble = 0;
    while nibble < 16 {
        values[hex(nibble) as usize] = nibble;
        nibble += 1;
    }
    values
};

/// The payload of a message: a JSON string of `size` bytes with its quotes, at least [`MIN_PAYLOAD_BYTES`].
///
/// The padding is of 64 different characters in no order, so that compression finds about as much in it as in an
/// identifier or base64.
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

/// Finds stamps in messages.
#[derive(Debug)]
pub(crate) struct StampFinder {
    search: memmem::Finder<'static>,
    /// Where the last one was: messages of a run look much alike.
    last: usize,
}

impl StampFinder {
    pub(crate) fn new() -> Self {
        Self { search: memmem::Finder::new(PREFIX), last: 0 }
    }

    /// The stamp in a message; `None` if it has none.
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

/// Reads a mark and digits at the start.
#[inline]
fn read(text: &[u8]) -> Option<Stamp> {
    let (mark, rest) = text.split_first_chunk()?;
    if mark != PREFIX {
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
    fn payloads_have_the_size_asked_for_or_the_shortest() {
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
    fn what_only_looks_like_a_stamp_is_none() {
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
        fn stamps_are_found_wherever_they_are(
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
