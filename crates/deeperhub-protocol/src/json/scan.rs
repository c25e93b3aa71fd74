//! A one-pass JSON scanner that validates a text and locates values without building a tree.

mod elements;
mod nesting;
#[cfg(test)]
mod tests;

use super::string::{plain_len, unescape};
pub(crate) use elements::Elements;
use nesting::{HeapNesting, NestingStack};

/// Upper bound of the nesting limit. It equals the recursion limit of serde_json.
pub(crate) const MAX_NESTING: u32 = 127;

/// A JSON syntax error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is not JSON: expected {expected} at byte {at}")]
pub(crate) struct SyntaxError {
    /// Offset in bytes.
    pub(crate) at: usize,
    /// The expected token.
    pub(crate) expected: &'static str,
}

/// An error without content for a text that is not JSON. [`Scanner::syntax_error`] returns the
/// cause.
///
/// The scanner's inner functions return this type instead of [`SyntaxError`], so that their results
/// fit into registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotJson;

/// A scanner at a position in a text. All bytes before the position are valid.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    pos: usize,
    /// `true` if a string with escapes was scanned since the flag was last cleared.
    escaped: bool,
    /// After a [`NotJson`] error: the token that was expected at the position.
    expected: &'static str,
    /// The nesting limit, at most [`MAX_NESTING`].
    max_nesting: u32,
    /// `true` if the scanned text exceeds the limit.
    too_deep: bool,
}

/// The result of scanning a text that is one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScannedText<'a> {
    /// The value without white space around it.
    pub(crate) value: &'a str,
    /// `true` if the value exceeds the nesting limit.
    pub(crate) too_deep: bool,
}

/// The key of an object's member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'a> {
    /// The JSON string without its quotes.
    inside: &'a str,
    /// `true` if the string contains escapes.
    escaped: bool,
}

impl<'a> Key<'a> {
    /// Calls `find` with the decoded key. A key that is not Unicode text is passed as an empty
    /// string, which is not a known key.
    #[inline]
    pub(crate) fn find<T>(self, find: impl FnOnce(&str) -> T) -> T {
        if self.escaped { self.find_unescaped(find) } else { find(self.inside) }
    }

    #[cold]
    fn find_unescaped<T>(self, find: impl FnOnce(&str) -> T) -> T {
        find(&unescape(self.inside).unwrap_or_default())
    }
}

impl<'a> Scanner<'a> {
    /// Creates a scanner with a limit of `max_nesting` levels, at most [`MAX_NESTING`]. If a text
    /// exceeds the limit, the scanner records this and still validates the text to its end.
    pub(crate) const fn new(text: &'a str, max_nesting: u32) -> Self {
        let max_nesting = if max_nesting < MAX_NESTING { max_nesting } else { MAX_NESTING };
        Self { text, pos: 0, escaped: false, expected: "a value", max_nesting, too_deep: false }
    }

    /// Scans a text that is one value, with optional white space around it.
    ///
    /// `outer_levels` is the number of levels that count as open around the value.
    pub(crate) fn scan_text(mut self, outer_levels: u32) -> Result<ScannedText<'a>, SyntaxError> {
        self.skip_white();
        let value = self.scan_value(outer_levels);
        match value.and_then(|value| self.expect_end().map(|()| value)) {
            Ok(value) => Ok(ScannedText { value, too_deep: self.too_deep }),
            Err(NotJson) => Err(self.syntax_error()),
        }
    }

    /// Returns `true` if the scanned text exceeds the nesting limit.
    pub(crate) const fn is_too_deep(&self) -> bool {
        self.too_deep
    }

    /// Returns the error that stopped the scanner.
    pub(crate) const fn syntax_error(&self) -> SyntaxError {
        SyntaxError { at: self.pos, expected: self.expected }
    }

    /// Returns the byte at the position, or NUL at the end, which is not valid in JSON.
    #[inline]
    pub(crate) fn peek(&self) -> u8 {
        self.byte(self.pos)
    }

    #[inline]
    pub(crate) fn skip_white(&mut self) {
        self.pos = self.after_white(self.pos);
    }

    /// Checks that only white space follows the position.
    pub(crate) fn expect_end(&mut self) -> Result<(), NotJson> {
        self.skip_white();
        if self.pos == self.text.len() { Ok(()) } else { Err(self.fail(self.pos, "the end")) }
    }

    /// Skips `text`. Returns `None` if something else comes next.
    #[inline(always)]
    pub(crate) fn accept<const N: usize>(&mut self, text: &[u8; N]) -> Option<()> {
        let is_next = self.text.as_bytes().get(self.pos..)?.first_chunk() == Some(text);
        is_next.then(|| self.pos += N)
    }

    /// Returns `true` at the end of the text.
    pub(crate) const fn is_at_end(&self) -> bool {
        self.pos == self.text.len()
    }

    /// Scans the string at the position, and returns it without its quotes. Returns `None` for another
    /// value and for a string with escapes.
    #[inline]
    pub(crate) fn plain_string(&mut self) -> Option<&'a str> {
        if self.peek() != b'"' {
            return None;
        }
        let start = self.pos;
        self.escaped = false;
        self.pos = self.after_string(start).ok()?;
        if self.escaped { None } else { self.text.get(start + 1..self.pos - 1) }
    }

    /// Scans the value that starts at the position, without white space before it. Returns the
    /// value's text.
    ///
    /// `outer_levels` is the number of levels that count as open around the value.
    pub(crate) fn scan_value(&mut self, outer_levels: u32) -> Result<&'a str, NotJson> {
        let start = self.pos;
        self.pos = self.after_value(start, self.max_nesting.saturating_sub(outer_levels), 0u128)?;
        Ok(self.text_since(start))
    }

    /// Scans the object at the position and returns its text. Calls `member` after each key;
    /// `member` must scan the value. The object itself is not checked against the nesting limit.
    #[inline]
    pub(crate) fn scan_object(
        &mut self,
        mut member: impl FnMut(&mut Self, Key<'a>) -> Result<(), NotJson>,
    ) -> Result<&'a str, NotJson> {
        let start = self.pos;
        if self.peek() != b'{' {
            return Err(self.fail(start, "`{`"));
        }
        self.pos = self.after_white(start + 1);
        if self.peek() == b'}' {
            self.pos += 1;
            return Ok(self.text_since(start));
        }
        loop {
            let key = self.key()?;
            member(self, key)?;
            self.skip_white();
            match self.peek() {
                b',' => self.pos = self.after_white(self.pos + 1),
                b'}' => {
                    self.pos += 1;
                    return Ok(self.text_since(start));
                }
                _ => return Err(self.fail(self.pos, "`,` or `}`")),
            }
        }
    }

    /// Scans a key, the colon after it, and the white space around the colon.
    ///
    /// The function is always inlined. Otherwise, the key would be returned in memory instead of
    /// registers, which costs more than the scan.
    #[inline(always)]
    fn key(&mut self) -> Result<Key<'a>, NotJson> {
        let start = self.pos;
        self.escaped = false;
        let end = self.after_key(start)?;
        let inside = self.text.get(start + 1..end - 1).unwrap_or_default();
        self.pos = self.after_colon(end)?;
        Ok(Key { inside, escaped: self.escaped })
    }

    /// Returns the position after the value at `pos`, with up to `limit` levels on the stack
    /// `levels`.
    ///
    /// The function uses this stack instead of recursion, so the call stack stays small.
    fn after_value(
        &mut self,
        mut pos: usize,
        limit: u32,
        mut levels: impl NestingStack,
    ) -> Result<usize, NotJson> {
        let mut open = 0u32;
        loop {
            // A value begins here.
            match self.byte(pos) {
                b'"' => pos = self.after_string(pos)?,
                bracket @ (b'{' | b'[') => {
                    let is_object = bracket == b'{';
                    let inside = self.after_white(pos + 1);
                    if open >= limit {
                        pos = self.after_deep_value(pos)?;
                    } else if self.byte(inside) == if is_object { b'}' } else { b']' } {
                        pos = inside + 1;
                    } else {
                        pos = inside;
                        levels.push(is_object);
                        open += 1;
                        if is_object {
                            pos = self.after_key(pos)?;
                            pos = self.after_colon(pos)?;
                        }
                        continue;
                    }
                }
                b'-' | b'0'..=b'9' => pos = self.after_number(pos)?,
                b't' => pos = self.after_literal(pos, *b"true")?,
                b'n' => pos = self.after_literal(pos, *b"null")?,
                b'f' => pos = self.after_literal(pos, *b"false")?,
                _ => return Err(self.fail(pos, "a value")),
            }
            // A value ended here.
            loop {
                if open == 0 {
                    return Ok(pos);
                }
                let is_object = levels.is_object();
                pos = self.after_white(pos);
                match self.byte(pos) {
                    b',' => {
                        pos = self.after_white(pos + 1);
                        if is_object {
                            pos = self.after_key(pos)?;
                            pos = self.after_colon(pos)?;
                        }
                        break;
                    }
                    b'}' if is_object => {}
                    b']' if !is_object => {}
                    _ => return Err(self.fail(pos, if is_object { "`,` or `}`" } else { "`,` or `]`" })),
                }
                pos += 1;
                levels.pop();
                open -= 1;
            }
        }
    }

    /// Scans an array or object over the nesting limit, and records that the text exceeds the
    /// limit. The scan goes on so that a text that is not JSON still gets a syntax error.
    #[cold]
    #[inline(never)]
    fn after_deep_value(&mut self, pos: usize) -> Result<usize, NotJson> {
        self.too_deep = true;
        self.after_value(pos, u32::MAX, HeapNesting::default())
    }

    #[inline]
    fn after_key(&mut self, pos: usize) -> Result<usize, NotJson> {
        if self.byte(pos) != b'"' {
            return Err(self.fail(pos, "a key in double quotes"));
        }
        self.after_string(pos)
    }

    #[inline]
    fn after_colon(&mut self, pos: usize) -> Result<usize, NotJson> {
        let pos = self.after_white(pos);
        if self.byte(pos) != b':' {
            return Err(self.fail(pos, "`:`"));
        }
        Ok(self.after_white(pos + 1))
    }

    /// Returns the position after the string whose opening quote is at `pos`.
    fn after_string(&mut self, pos: usize) -> Result<usize, NotJson> {
        let inside = pos + 1;
        let end = inside + plain_len(self.text.as_bytes().get(inside..).unwrap_or_default());
        if self.byte(end) == b'"' { Ok(end + 1) } else { self.after_escapes(end) }
    }

    /// Returns the position after a string whose first escape or error is at `pos`.
    fn after_escapes(&mut self, mut pos: usize) -> Result<usize, NotJson> {
        self.escaped = true;
        loop {
            match self.byte(pos) {
                b'"' => return Ok(pos + 1),
                b'\\' => pos = self.after_escape(pos)?,
                _ if pos == self.text.len() => return Err(self.fail(pos, "`\"`, the string's end,")),
                _ => return Err(self.fail(pos, "control characters only as escapes,")),
            }
            pos += plain_len(self.text.as_bytes().get(pos..).unwrap_or_default());
        }
    }

    fn after_escape(&mut self, pos: usize) -> Result<usize, NotJson> {
        match self.byte(pos + 1) {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(pos + 2),
            b'u' => {
                let digits = pos + 2;
                for at in digits..digits + 4 {
                    if !self.byte(at).is_ascii_hexdigit() {
                        return Err(self.fail(at, "four hexadecimal digits"));
                    }
                }
                Ok(digits + 4)
            }
            _ => Err(self.fail(pos + 1, "one of `\"\\/bfnrtu` after a backslash")),
        }
    }

    #[inline]
    fn after_number(&mut self, mut pos: usize) -> Result<usize, NotJson> {
        if self.byte(pos) == b'-' {
            pos += 1;
        }
        pos = if self.byte(pos) == b'0' { pos + 1 } else { self.after_digits(pos)? };
        if self.byte(pos) == b'.' {
            pos = self.after_digits(pos + 1)?;
        }
        if matches!(self.byte(pos), b'e' | b'E') {
            pos += 1;
            if matches!(self.byte(pos), b'+' | b'-') {
                pos += 1;
            }
            pos = self.after_digits(pos)?;
        }
        Ok(pos)
    }

    #[inline]
    fn after_digits(&mut self, mut pos: usize) -> Result<usize, NotJson> {
        if !self.byte(pos).is_ascii_digit() {
            return Err(self.fail(pos, "a digit"));
        }
        while self.byte(pos).is_ascii_digit() {
            pos += 1;
        }
        Ok(pos)
    }

    #[inline]
    fn after_literal<const N: usize>(&mut self, pos: usize, literal: [u8; N]) -> Result<usize, NotJson> {
        let rest = self.text.as_bytes().get(pos..).unwrap_or_default();
        if rest.first_chunk() == Some(&literal) { Ok(pos + N) } else { Err(self.fail(pos, "a value")) }
    }

    #[inline]
    fn after_white(&self, mut pos: usize) -> usize {
        loop {
            let byte = self.byte(pos);
            // Usually there is no white space, and the first comparison ends the loop.
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return pos;
            }
            pos += 1;
        }
    }

    /// Returns the byte at `pos`, or NUL at the end, which is not valid in JSON.
    #[inline]
    fn byte(&self, pos: usize) -> u8 {
        self.text.as_bytes().get(pos).copied().unwrap_or(0)
    }

    /// Returns the text from `start` to the position. Both are next to an ASCII byte, so they are
    /// on character boundaries.
    #[inline]
    fn text_since(&self, start: usize) -> &'a str {
        self.text.get(start..self.pos).unwrap_or_default()
    }

    /// Records the position and the expected token of a syntax error.
    #[cold]
    fn fail(&mut self, at: usize, expected: &'static str) -> NotJson {
        self.pos = at;
        self.expected = expected;
        NotJson
    }
}
