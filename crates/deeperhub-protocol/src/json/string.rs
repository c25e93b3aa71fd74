//! Functions that find the end of JSON strings, decode them, and encode them.
//!
//! A special byte is a quote, a backslash or a control character. In a JSON string, it is the end
//! or the start of an escape, or it is invalid. All other bytes are plain.

use std::borrow::Cow;

use fearless_simd::{Level, dispatch};

/// Number of bytes that are checked together in long strings. The loop over them compiles to vector
/// instructions. Of 16, 32, 64 and 128, 64 was the fastest for strings of 16 KiB.
const CHUNK_BYTES: usize = 64;

/// Number of bytes that are checked together where a chunk has a special byte.
const BLOCK_BYTES: usize = 16;

/// Minimum length for detecting the widest vector instructions at run time. They halve the time for
/// long strings.
const SIMD_MIN_BYTES: usize = 128;

/// A word of eight bytes, each with the value 1.
const ONE_IN_EACH_BYTE: u64 = u64::MAX / 255;

/// Returns the number of plain bytes at the start of `bytes`.
#[inline]
pub(super) fn plain_len(bytes: &[u8]) -> usize {
    // Most strings are keys and names that end within 16 bytes, so check two words of eight first.
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

/// Returns the number of plain bytes at the start of `bytes`, for long strings.
fn plain_len_simd(bytes: &[u8]) -> usize {
    let mut len = if bytes.len() < SIMD_MIN_BYTES {
        plain_chunks(bytes)
    } else {
        dispatch!(Level::new(), _simd => plain_chunks(bytes))
    };
    let (blocks, _) = bytes.get(len..).unwrap_or_default().as_chunks::<BLOCK_BYTES>();
    len += BLOCK_BYTES * blocks.iter().take_while(|block| !has_special(block)).count();
    let (words, tail) = bytes.get(len..).unwrap_or_default().as_chunks();
    for word in words {
        if let Some(at) = first_special(*word) {
            return len + at;
        }
        len += word.len();
    }
    len + plain_tail(tail)
}

/// Returns the total length of the chunks before the first chunk with a special byte. The function
/// is always inlined, so that the compiler can use the caller's instruction set.
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

/// Returns the number of plain bytes at the start of fewer than eight bytes.
fn plain_tail(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| is_special(byte)).unwrap_or(bytes.len())
}

const fn is_special(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

/// Returns `true` if the chunk has a special byte. The loop has no branches, so that the compiler
/// can vectorise it.
#[inline(always)]
fn has_special<const N: usize>(chunk: &[u8; N]) -> bool {
    let special = chunk.iter().fold(0, |special, &byte| {
        special | u8::from(byte < b' ') | u8::from(byte == b'"') | u8::from(byte == b'\\')
    });
    special != 0
}

/// Returns the position of the first special byte in a word of eight bytes.
#[inline]
fn first_special(word: [u8; 8]) -> Option<usize> {
    let word = u64::from_le_bytes(word);
    // `control`, `quote` and `backslash` have the top bit set in each matching byte. The borrow of
    // a subtraction can also set the top bit of a later byte that does not match. This is harmless:
    // only the first byte with a top bit counts, and it always matches.
    let zero = |bytes: u64| bytes.wrapping_sub(ONE_IN_EACH_BYTE) & !bytes;
    let control = word.wrapping_sub(ONE_IN_EACH_BYTE * u64::from(b' ')) & !word;
    let quote = zero(word ^ (ONE_IN_EACH_BYTE * u64::from(b'"')));
    let backslash = zero(word ^ (ONE_IN_EACH_BYTE * u64::from(b'\\')));
    let special = (control | quote | backslash) & (ONE_IN_EACH_BYTE << 7);
    (special != 0).then(|| special.trailing_zeros() as usize / 8)
}

/// Decodes a valid JSON string, given without its quotes. Borrows the text if it has no escapes.
///
/// Returns `None` if the string contains an unpaired surrogate. RFC 8259 section 8.2 allows
/// unpaired surrogates, but UTF-8 cannot encode them.
#[inline]
pub(crate) fn unescape(inside: &str) -> Option<Cow<'_, str>> {
    // In a valid string, the first special byte is the backslash of an escape.
    let (plain, escaped) = inside.split_at_checked(plain_len(inside.as_bytes()))?;
    if escaped.is_empty() {
        return Some(Cow::Borrowed(inside));
    }
    unescape_from(plain, escaped.strip_prefix('\\')?).map(Cow::Owned)
}

/// Decodes a string that consists of `plain` text, a backslash, and the text after the backslash.
fn unescape_from(plain: &str, escaped: &str) -> Option<String> {
    let mut text = String::with_capacity(plain.len() + escaped.len());
    text.push_str(plain);
    let mut rest = escaped;
    loop {
        // `rest` is the text after a backslash.
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
                // A low surrogate without a high surrogate before it is not a `char`.
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

/// Encodes `text` as a JSON string with quotes, and passes the string to `write` in pieces.
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
    fn special_bytes_are_found_at_every_position() {
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
    fn the_first_of_several_special_bytes_is_found() {
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
    fn an_unpaired_surrogate_is_not_decoded() {
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
        fn any_encoded_text_decodes_to_the_same_text(text in any::<String>()) {
            let json = escaped(&text);
            prop_assert_eq!(&serde_json::from_str::<String>(&json).unwrap(), &text);
            let ours = unescape(&json[1..json.len() - 1]);
            prop_assert_eq!(ours.as_deref(), Some(text.as_str()));
        }

        #[test]
        fn strings_are_decoded_like_serde_json(inside in r#"([a-zé ]|\\[\\"/bfnrt]|\\u[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-f]{2}\\u[dD][c-fC-F][0-9a-f]{2}){0,12}"#) {
            let theirs = serde_json::from_str::<String>(&format!("\"{inside}\"")).ok();
            let ours = unescape(&inside);
            prop_assert_eq!(ours.as_deref(), theirs.as_deref());
        }
    }
}
