//! Incremental UTF-8 validation.

use super::FrameError;

/// The received part of a text message: whole characters, and up to three bytes of an incomplete
/// one.
#[derive(Debug, Default)]
pub(super) struct Utf8Buffer {
    text: String,
    /// The first bytes of an incomplete character: `incomplete[..incomplete_len]`.
    incomplete: [u8; 4],
    incomplete_len: u8,
}

impl Utf8Buffer {
    /// Appends the next bytes, which can end inside a character. Returns an error as soon as the
    /// bytes cannot be the start of valid UTF-8.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while self.incomplete_len > 0 {
            let Some((&next, rest)) = bytes.split_first() else { return Ok(()) };
            bytes = rest;
            self.push_incomplete(next)?;
        }
        match simdutf8::compat::from_utf8(bytes) {
            Ok(text) => self.text.push_str(text),
            Err(error) if error.error_len().is_some() => return Err(FrameError::InvalidUtf8),
            Err(error) => {
                let (whole, incomplete) = bytes.split_at(error.valid_up_to());
                // The error already says that `whole` is valid, but safe code must check it again.
                // This happens only if a read ends inside a character.
                self.text.push_str(simdutf8::basic::from_utf8(whole).map_err(|_| FrameError::InvalidUtf8)?);
                for &byte in incomplete {
                    self.push_incomplete(byte)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the whole text, or an error if the text ends inside a character.
    pub(super) fn finish(&self) -> Result<&str, FrameError> {
        if self.incomplete_len == 0 { Ok(&self.text) } else { Err(FrameError::InvalidUtf8) }
    }

    /// Returns the length of the whole characters in bytes.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.text.capacity()
    }

    pub(super) fn reserve_exact(&mut self, additional: usize) {
        self.text.reserve_exact(additional);
    }

    /// Appends one byte to the incomplete character.
    fn push_incomplete(&mut self, byte: u8) -> Result<(), FrameError> {
        let len = usize::from(self.incomplete_len);
        // Four bytes are always a character or an error, so a fifth byte cannot follow.
        *self.incomplete.get_mut(len).ok_or(FrameError::InvalidUtf8)? = byte;
        match std::str::from_utf8(&self.incomplete[..=len]) {
            Ok(character) => {
                self.text.push_str(character);
                self.incomplete_len = 0;
                Ok(())
            }
            Err(error) if error.error_len().is_some() => Err(FrameError::InvalidUtf8),
            Err(_) => {
                self.incomplete_len += 1;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a strategy for valid UTF-8 with some invalid bytes in it.
    fn utf8_like() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
            1 => "[a-z]{0,80}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(0x80..=0xffu8, 0..3),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn invalid_utf8_is_reported_at_the_first_invalid_byte() {
        for (bytes, first_invalid) in [
            (&b"a\xf4\x90\x80\x80"[..], 2),
            (b"\xed\xa0\x80", 1),
            (b"\xc0\x80", 0),
            (b"\xe0\x80\x80", 1),
            (b"abc\xff", 3),
            (b"\xce\xbaz", usize::MAX),
            (b"\xe2\x82z", 2),
        ] {
            let mut buffer = Utf8Buffer::default();
            for (i, &byte) in bytes.iter().enumerate().take(first_invalid.saturating_add(1)) {
                let expected = if i == first_invalid { Err(FrameError::InvalidUtf8) } else { Ok(()) };
                assert_eq!(buffer.push(&[byte]), expected, "byte {i} of {bytes:x?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_split_agrees_with_std(bytes in utf8_like(), cuts in proptest::collection::vec(0..40usize, 0..8)) {
            let mut buffer = Utf8Buffer::default();
            let mut rest = &bytes[..];
            let mut result = Ok(());
            for cut in cuts {
                let (bytes, tail) = rest.split_at(cut.min(rest.len()));
                result = result.and_then(|()| buffer.push(bytes));
                rest = tail;
            }
            let result = result.and_then(|()| buffer.push(rest)).and_then(|()| buffer.finish());
            prop_assert_eq!(result.ok(), std::str::from_utf8(&bytes).ok());
        }
    }
}
