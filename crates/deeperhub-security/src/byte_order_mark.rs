//! Byte order marks, which some editors and shells put before text.

/// U+FEFF in UTF-8.
pub(crate) const MARK: &[u8] = b"\xef\xbb\xbf";

/// Error for UTF-16 text, which some shells write by default. Only UTF-8 is supported.
#[cfg(feature = "auth")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Utf16;

/// Returns the text without a leading byte order mark.
#[cfg(feature = "auth")]
pub(crate) fn without_mark(text: &[u8]) -> Result<&[u8], Utf16> {
    if is_utf16(text) {
        return Err(Utf16);
    }
    Ok(text.strip_prefix(MARK).unwrap_or(text))
}

/// Returns the text without byte order marks at the start of lines. A mark is at the start of the
/// text, or at the start of a later line if files were concatenated.
#[cfg(feature = "tls")]
pub(crate) fn without_marks(text: crate::Secret) -> crate::Secret {
    use zeroize::Zeroizing;
    if !text.expose().windows(MARK.len()).any(|window| window == MARK) {
        return text;
    }
    let mut rest = text.expose();
    // The buffer has its full capacity from the start. A growing one would leave copies in freed
    // memory.
    let mut cleaned = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let Some(&first) = rest.first() {
        let is_line_start = cleaned.last().is_none_or(|last| matches!(last, b'\n' | b'\r'));
        match rest.strip_prefix(MARK) {
            Some(after) if is_line_start => rest = after,
            _ => {
                cleaned.push(first);
                rest = &rest[1..];
            }
        }
    }
    crate::Secret::from_zeroizing(cleaned)
}

/// Returns `true` if the text begins with the byte order mark of UTF-16.
pub(crate) fn is_utf16(text: &[u8]) -> bool {
    text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "tls")]
    #[test]
    fn marks_go_where_files_were_joined() {
        let check = |text: &str, expected: &str| {
            let cleaned = without_marks(crate::Secret::new(text));
            assert_eq!(cleaned.expose(), expected.as_bytes(), "{text:?}");
        };
        check("a\nb", "a\nb");
        check("\u{feff}a\r\n\u{feff}\u{feff}b\r\u{feff}c", "a\r\nb\rc");
        check("a\u{feff}b\u{feff}", "a\u{feff}b\u{feff}");
        check("\u{feff}", "");
    }

    #[cfg(feature = "auth")]
    #[test]
    fn a_mark_is_taken_off_once_and_utf_16_is_told() {
        for (text, expected) in [
            (&b"{}"[..], Ok(&b"{}"[..])),
            (b"", Ok(b"")),
            (b"\xef\xbb\xbf{}", Ok(b"{}")),
            (b"\xef\xbb\xbf\xef\xbb\xbf{}", Ok(b"\xef\xbb\xbf{}")),
            (b"\xef\xbb", Ok(b"\xef\xbb")),
            (b"\xff\xfe{\0}\0", Err(Utf16)),
            (b"\xfe\xff\0{\0}", Err(Utf16)),
        ] {
            assert_eq!(without_mark(text), expected, "{text:?}");
        }
    }
}
