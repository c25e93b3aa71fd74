//! JSON strings: find their end, decode and encode them.

use std::borrow::Cow;

use fearless_simd::{Level, dispatch};

/// Number of bytes checked together in long strings. The loop compiles to vector instructions; 64
/// was the fastest of 16, 32, 64 and 128 for strings of 16 KiB.
const CHUNK_BYTES: usize = 64;

/// Minimum length for run-time detection of the widest vector instructions, which halve the time.
const SIMD_MIN_BYTES: usize = 128;

/// A word with 1 in every byte.
const ONE_IN_EACH_BYTE: u64 = u64::MAX / 255;

/// Returns the number of bytes before the first quote, backslash or control character, or the
/// length of `bytes` if there is none.
#[inline]
pub(super) fn plain_len(bytes: &[u8]) -> usize {
    // Most strings are keys and names that end within two words, so check those first.
    let Some((first, rest)) = bytes.split_first_chunk() else { return plain_tail(bytes) };
    if let Some(at) = first_special(*first) {
        return at;
    }
    let Some((second, rest)) = rest.split_first_chunk() else { return 8 + plain_tail(rest) };
    if let Some(at) = first_special(*second) {
        return 8 + at;
    }
    16 + plain_len_simd(rest)
}

fn plain_len_simd(bytes: &[u8]) -> usize {
    let mut len = if bytes.len() < SIMD_MIN_BYTES {
        plain_chunks(bytes)
    } else {
        dispatch!(Level::new(), _simd => plain_chunks(bytes))
    };
    let (words, tail) = bytes.get(len..).unwrap_or_default().as_chunks();
    for word in words {
        if let Some(at) = first_special(*word) {
            return len + at;
        }
        len += word.len();
    }
    len + plain_tail(tail)
}

/// Returns the length of the chunks before the first one with a special byte. Always inlined, so
/// that it is compiled for the instruction set of the caller.
#[inline(always)]
fn plain_chunks(bytes: &[u8]) -> usize {
    let mut len = 0;
    let (chunks, _) = bytes.as_chunks::<CHUNK_BYTES>();
    for chunk in chunks {
        if has_special(chunk) {
            break;
        }
        len += CHUNK_BYTES;
    }
    len
}

/// Handles fewer than eight bytes.
fn plain_tail(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| is_special(byte)).unwrap_or(bytes.len())
}

const fn is_special(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

/// Returns `true` if a byte is special. Branch-free, so that it is vectorised.
#[inline(always)]
fn has_special(chunk: &[u8; CHUNK_BYTES]) -> bool {
    let found = chunk.iter().fold(0, |found, &byte| {
        found | u8::from(byte < b' ') | u8::from(byte == b'"') | u8::from(byte == b'\\')
    });
    found != 0
}

/// Returns the position of the first special byte in eight.
#[inline]
fn first_special(word: [u8; 8]) -> Option<usize> {
    let word = u64::from_le_bytes(word);
    // Each term sets the top bit of the bytes that are zero, or less than a space. The borrow of
    // a subtraction can set it wrongly too, but only above a byte where it is set rightly.
    let zero = |bytes: u64| bytes.wrapping_sub(ONE_IN_EACH_BYTE) & !bytes;
    let control = word.wrapping_sub(ONE_IN_EACH_BYTE * u64::from(b' ')) & !word;
    let quote = zero(word ^ (ONE_IN_EACH_BYTE * u64::from(b'"')));
    let backslash = zero(word ^ (ONE_IN_EACH_BYTE * u64::from(b'\\')));
    let found = (control | quote | backslash) & (ONE_IN_EACH_BYTE << 7);
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

/// Decodes the inside of a valid JSON string, borrowing it if it has no escapes.
///
/// Returns `None` for an unpaired surrogate, which RFC 8259 allows (section 8.2) but UTF-8 does
/// not.
#[inline]
pub(crate) fn unescape(inside: &str) -> Option<Cow<'_, str>> {
    // In a valid string, only escapes are not plain.
    let (plain, escaped) = inside.split_at_checked(plain_len(inside.as_bytes()))?;
    if escaped.is_empty() {
        return Some(Cow::Borrowed(inside));
    }
    unescape_from(plain, escaped.strip_prefix('\\')?).map(Cow::Owned)
}

/// Decodes `plain`, a backslash, and `escaped`.
fn unescape_from(plain: &str, escaped: &str) -> Option<String> {
    let mut text = String::with_capacity(plain.len() + escaped.len());
    text.push_str(plain);
    let mut rest = escaped;
    loop {
        // `rest` stands behind a backslash.
        let mut chars = rest.chars();
        match chars.next()? {
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            't' => text.push('\t'),
            'u' => {
                let first = code_unit(&mut chars)?;
                let unit = match first {
                    0xd800..=0xdbff => {
                        chars = chars.as_str().strip_prefix("\\u")?.chars();
                        let second = code_unit(&mut chars)?;
                        let low = second.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                        0x1_0000 + ((first - 0xd800) << 10) + low
                    }
                    unit => unit,
                };
                // A low surrogate without its high one is not a `char`.
                text.push(char::from_u32(unit)?);
            }
            same @ ('"' | '\\' | '/') => text.push(same),
            _ => return None,
        }
        match chars.as_str().split_once('\\') {
            Some((plain, escaped)) => {
                text.push_str(plain);
                rest = escaped;
            }
            None => {
                text.push_str(chars.as_str());
                return Some(text);
            }
        }
    }
}

/// Parses the four hexadecimal digits of a `\u` escape.
fn code_unit(chars: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |unit, _| Some(unit << 4 | chars.next()?.to_digit(16)?))
}

/// Passes `text` as a JSON string with quotes to `write`, piece by piece.
pub(crate) fn escape(text: &str, mut write: impl FnMut(&[u8])) {
    write(b"\"");
    let mut rest = text.as_bytes();
    loop {
        let (plain, special) = rest.split_at_checked(plain_len(rest)).unwrap_or((rest, &[]));
        write(plain);
        let Some((&byte, tail)) = special.split_first() else { break };
        match byte {
            b'"' => write(b"\\\""),
            b'\\' => write(b"\\\\"),
            b'\n' => write(b"\\n"),
            b'\r' => write(b"\\r"),
            b'\t' => write(b"\\t"),
            control => {
                let hex = |digit: u8| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
                write(&[b'\\', b'u', b'0', b'0', hex(control >> 4), hex(control & 15)]);
            }
        }
        rest = tail;
    }
    write(b"\"");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(text: &str) -> String {
        let mut bytes = Vec::new();
        escape(text, |piece| bytes.extend_from_slice(piece));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_byte_is_found_at_every_distance() {
        for byte in 0..=u8::MAX {
            for distance in 0..300 {
                let mut bytes = vec![b'a'; 300];
                bytes[distance] = byte;
                let expected = if is_special(byte) { distance } else { 300 };
                assert_eq!(plain_len(&bytes), expected, "byte {byte:#04x} at {distance}");
            }
        }
    }

    #[test]
    fn the_first_of_several_is_found() {
        for (text, at) in
            [("a\"\"", 1), ("!\"#\\", 1), ("ab\u{1}\"cdefgh", 2), ("!!!!!!!\\\"", 7), ("é\"", 2)]
        {
            assert_eq!(plain_len(text.as_bytes()), at, "{text:?}");
        }
    }

    #[test]
    fn text_without_escapes_is_borrowed() {
        assert!(matches!(unescape("caf\u{e9} \u{1f600}"), Some(Cow::Borrowed("café 😀"))));
    }

    #[test]
    fn escapes_are_decoded() {
        for (inside, text) in [
            (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
            (r"ty\u0070e", "type"),
            (r"\u00E9\u00e9", "éé"),
            (r"x\ud83d\uDE00y", "x😀y"),
            (r"\uffff\u0000", "\u{ffff}\0"),
        ] {
            assert_eq!(unescape(inside).as_deref(), Some(text), "{inside}");
        }
    }

    #[test]
    fn a_lone_surrogate_is_not_text() {
        for inside in
            [r"\ud800", r"\udc00", r"\ud800x", r"\ud800\n", r"\ud800\ud800", r"\ud83d\u0041", r"a\udfffb"]
        {
            assert_eq!(unescape(inside), None, "{inside}");
        }
    }

    #[test]
    fn escapes_are_written_in_their_short_form() {
        assert_eq!(
            escaped("a\"b\\c\nd\re\tf\u{0}\u{1f}\u{7f}é/"),
            "\"a\\\"b\\\\c\\nd\\re\\tf\\u0000\\u001f\u{7f}é/\""
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn plain_len_is_the_first_special_byte(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let expected = bytes.iter().position(|&byte| is_special(byte)).unwrap_or(bytes.len());
            prop_assert_eq!(plain_len(&bytes), expected);
        }

        #[test]
        fn any_text_survives_escaping(text in any::<String>()) {
            let json = escaped(&text);
            prop_assert_eq!(&serde_json::from_str::<String>(&json).unwrap(), &text);
            let ours = unescape(&json[1..json.len() - 1]);
            prop_assert_eq!(ours.as_deref(), Some(text.as_str()));
        }

        #[test]
        fn strings_are_read_as_serde_json_reads_them(inside in r#"([a-zé ]|\\[\\"/bfnrt]|\\u[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-f]{2}\\u[dD][c-fC-F][0-9a-f]{2}){0,12}"#) {
            let theirs = serde_json::from_str::<String>(&format!("\"{inside}\"")).ok();
            let ours = unescape(&inside);
            prop_assert_eq!(ours.as_deref(), theirs.as_deref());
        }
    }
}
