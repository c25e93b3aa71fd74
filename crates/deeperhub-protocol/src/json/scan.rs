//! One pass over a JSON text: checks it wholly and finds values, without building any.

use super::string::{plain_len, unescape};

/// Levels of arrays and objects that a text may have one inside the other at most, however a limit
/// is set: what serde_json reads with its own limit in place.
pub(crate) const MAX_NESTING: u32 = 127;

/// Where a text stops being JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is not JSON: expected {expected} at byte {at}")]
pub(crate) struct SyntaxError {
    /// Offset in bytes.
    pub(crate) at: usize,
    /// What would have been right there.
    pub(crate) expected: &'static str,
}

/// The text is not JSON; [`Scanner::syntax_error`] says why.
///
/// Kept apart from [`SyntaxError`] because it is empty: results of the functions that are called for
/// every value then fit into registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotJson;

/// A position in a text, before which all is known to be right.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    pos: usize,
    /// Whether the last string had an escape; who asks sets it to `false` before.
    escaped: bool,
    /// What would have been right at the position, after a [`NotJson`].
    expected: &'static str,
    /// Levels that the text may have, at most [`MAX_NESTING`].
    max_nesting: u32,
    /// Whether it has more.
    too_deep: bool,
}

/// A text that is one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScannedText<'a> {
    /// Without the white space around it.
    pub(crate) value: &'a str,
    /// Whether it has more levels than it may have.
    pub(crate) too_deep: bool,
}

/// Kinds of the open arrays and objects of a text, innermost last.
trait NestingStack {
    fn push(&mut self, is_object: bool);
    fn pop(&mut self);
    /// Whether the innermost is an object; anything when none is open.
    fn is_object(&self) -> bool;
}

/// One bit for each level, the innermost lowest: 1 for an object.
impl NestingStack for u128 {
    #[inline]
    fn push(&mut self, is_object: bool) {
        *self = *self << 1 | Self::from(is_object);
    }

    #[inline]
    fn pop(&mut self) {
        *self >>= 1;
    }

    #[inline]
    fn is_object(&self) -> bool {
        *self & 1 == 1
    }
}

/// Levels without end, for a text that will be refused: at most as many bytes as the text has.
#[derive(Default)]
struct HeapNesting(Vec<bool>);

impl NestingStack for HeapNesting {
    fn push(&mut self, is_object: bool) {
        self.0.push(is_object);
    }

    fn pop(&mut self) {
        self.0.pop();
    }

    fn is_object(&self) -> bool {
        self.0.last().is_some_and(|&is_object| is_object)
    }
}

/// The key of a member, without its quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'a> {
    inside: &'a str,
    escaped: bool,
}

impl<'a> Key<'a> {
    /// Looks up what stands for the key's name, its escapes read. One that is no Unicode text has
    /// no name of ours: it reads as empty.
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
    /// A scanner that tells whether the text has more levels than `max_nesting`, or than
    /// [`MAX_NESTING`] where that is less. It reads what is deeper all the same, to its end.
    pub(crate) const fn new(text: &'a str, max_nesting: u32) -> Self {
        let max_nesting = if max_nesting < MAX_NESTING { max_nesting } else { MAX_NESTING };
        Self { text, pos: 0, escaped: false, expected: "a value", max_nesting, too_deep: false }
    }

    /// Scans a text that is one value and nothing else but white space around it.
    ///
    /// `outer_levels` is the number of levels that will stand around the value, see [`Self::scan_value`].
    pub(crate) fn scan_text(mut self, outer_levels: u32) -> Result<ScannedText<'a>, SyntaxError> {
        self.skip_white();
        let value = self.scan_value(outer_levels);
        match value.and_then(|value| self.expect_end().map(|()| value)) {
            Ok(value) => Ok(ScannedText { value, too_deep: self.too_deep }),
            Err(NotJson) => Err(self.syntax_error()),
        }
    }

    /// Whether what was scanned has more levels than it may have.
    pub(crate) const fn is_too_deep(&self) -> bool {
        self.too_deep
    }

    /// Why the scanner stopped.
    pub(crate) const fn syntax_error(&self) -> SyntaxError {
        SyntaxError { at: self.pos, expected: self.expected }
    }

    /// The byte at the position; at the end a NUL, which no part of JSON may have.
    #[inline]
    pub(crate) fn peek(&self) -> u8 {
        self.byte(self.pos)
    }

    #[inline]
    pub(crate) fn skip_white(&mut self) {
        self.pos = self.after_white(self.pos);
    }

    /// Asks for the end of the text.
    pub(crate) fn expect_end(&mut self) -> Result<(), NotJson> {
        self.skip_white();
        if self.pos == self.text.len() { Ok(()) } else { Err(self.fail(self.pos, "the end")) }
    }

    /// Scans the value at the position, which must not be white space, and gives its text.
    ///
    /// `outer_levels` levels count as open around it.
    pub(crate) fn scan_value(&mut self, outer_levels: u32) -> Result<&'a str, NotJson> {
        let start = self.pos;
        self.pos = self.after_value(start, self.max_nesting.saturating_sub(outer_levels), 0u128)?;
        Ok(self.text_since(start))
    }

    /// Scans the object at the position, gives its text, and calls `member` with each key, at its
    /// value, which `member` must scan. The object itself is not looked at for its level.
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

    /// Scans a key, the colon and the white space around that.
    ///
    /// Always inlined: a key is more than registers return, and reading it back from memory right
    /// after it was written costs more than the rest.
    #[inline(always)]
    fn key(&mut self) -> Result<Key<'a>, NotJson> {
        let start = self.pos;
        self.escaped = false;
        let end = self.after_key(start)?;
        let inside = self.text.get(start + 1..end - 1).unwrap_or_default();
        self.pos = self.after_colon(end)?;
        Ok(Key { inside, escaped: self.escaped })
    }

    /// Not recursive: what a peer nests costs one bit of a word for each level, up to `limit`.
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
                    let object = bracket == b'{';
                    let inside = self.after_white(pos + 1);
                    if open >= limit {
                        pos = self.after_deep_value(pos)?;
                    } else if self.byte(inside) == if object { b'}' } else { b']' } {
                        pos = inside + 1;
                    } else {
                        pos = inside;
                        levels.push(object);
                        open += 1;
                        if object {
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
                let object = levels.is_object();
                pos = self.after_white(pos);
                match self.byte(pos) {
                    b',' => {
                        pos = self.after_white(pos + 1);
                        if object {
                            pos = self.after_key(pos)?;
                            pos = self.after_colon(pos)?;
                        }
                        break;
                    }
                    b'}' if object => {}
                    b']' if !object => {}
                    _ => return Err(self.fail(pos, if object { "`,` or `}`" } else { "`,` or `]`" })),
                }
                pos += 1;
                levels.pop();
                open -= 1;
            }
        }
    }

    /// Reads an array or object that is deeper than the limit, so that what is refused for it is
    /// known to be JSON.
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

    /// `pos` is that of the first quote.
    fn after_string(&mut self, pos: usize) -> Result<usize, NotJson> {
        let inside = pos + 1;
        let end = inside + plain_len(self.text.as_bytes().get(inside..).unwrap_or_default());
        if self.byte(end) == b'"' { Ok(end + 1) } else { self.after_escapes(end) }
    }

    /// Goes on in a string that has an escape at `pos`, or a fault.
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
            // Most often there is none, and one comparison tells.
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return pos;
            }
            pos += 1;
        }
    }

    #[inline]
    fn byte(&self, pos: usize) -> u8 {
        self.text.as_bytes().get(pos).copied().unwrap_or(0)
    }

    /// The text from `start` to the position. Both lie beside an ASCII byte, so on a boundary.
    #[inline]
    fn text_since(&self, start: usize) -> &'a str {
        self.text.get(start..self.pos).unwrap_or_default()
    }

    #[cold]
    fn fail(&mut self, at: usize, expected: &'static str) -> NotJson {
        self.pos = at;
        self.expected = expected;
        NotJson
    }
}

#[cfg(test)]
mod tests;
