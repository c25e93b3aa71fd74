//! One pass over a JSON text: checks it wholly and finds values, without building any.

use super::string::{plain_len, unescape};
use std::borrow::Cow;

/// Levels of arrays and objects that a text may have one inside the other: what serde_json reads
/// with its own limit in place.
pub(crate) const MAX_NESTING: u32 = 127;

/// Where a text stops being JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is not JSON: expected {expected} at byte {at}")]
pub(crate) struct Fault {
    /// Offset in bytes.
    pub(crate) at: usize,
    /// What would have been right there.
    pub(crate) expected: &'static str,
}

/// A position in a text, before which all is known to be right.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    pos: usize,
}

/// The key of a member, without its quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'a> {
    inside: &'a str,
    escaped: bool,
}

impl<'a> Key<'a> {
    /// The key with its escapes read. One that is no Unicode text equals none of ours: it reads
    /// as empty.
    pub(crate) fn name(self) -> Cow<'a, str> {
        if self.escaped { unescape(self.inside).unwrap_or_default() } else { Cow::Borrowed(self.inside) }
    }
}

impl<'a> Scanner<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { text, pos: 0 }
    }

    /// Scans a text that is one value and nothing else but white space around it.
    ///
    /// `outside` is the number of levels that will stand around the value, see [`Self::value`].
    pub(crate) fn whole(text: &'a str, outside: u32) -> Result<&'a str, Fault> {
        let mut scanner = Self::new(text);
        scanner.skip_white();
        let value = scanner.value(outside)?;
        scanner.end()?;
        Ok(value)
    }

    /// The byte at the position; at the end a NUL, which no part of JSON may have.
    pub(crate) fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.pos).copied().unwrap_or(0)
    }

    pub(crate) fn skip_white(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.pos += 1;
        }
    }

    /// Asks for the end of the text.
    pub(crate) fn end(&mut self) -> Result<(), Fault> {
        self.skip_white();
        if self.pos == self.text.len() { Ok(()) } else { Err(self.fault("the end")) }
    }

    /// Runs `scan` and gives the text that it went over.
    pub(crate) fn text_of(
        &mut self,
        scan: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<&'a str, Fault> {
        let start = self.pos;
        scan(self)?;
        Ok(self.since(start))
    }

    /// Scans the value at the position, which must not be white space, and gives its text.
    ///
    /// `outside` levels count as open around it.
    pub(crate) fn value(&mut self, outside: u32) -> Result<&'a str, Fault> {
        let start = self.pos;
        self.skip_value(outside)?;
        Ok(self.since(start))
    }

    /// Scans the object at the position and calls `member` with each key, at its value, which
    /// `member` must scan. The object must be no deeper than [`MAX_NESTING`].
    pub(crate) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Key<'a>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.byte(b'{', "`{`")?;
        self.skip_white();
        if self.peek() == b'}' {
            self.pos += 1;
            return Ok(());
        }
        loop {
            let key = self.key()?;
            member(self, key)?;
            self.skip_white();
            match self.peek() {
                b',' => {
                    self.pos += 1;
                    self.skip_white();
                }
                b'}' => {
                    self.pos += 1;
                    return Ok(());
                }
                _ => return Err(self.fault("`,` or `}`")),
            }
        }
    }

    /// Not recursive: what a peer nests costs one bit of a word for each level.
    fn skip_value(&mut self, outside: u32) -> Result<(), Fault> {
        // One bit for each open level, the innermost lowest: 1 for an object.
        let mut levels = 0u128;
        let mut open = 0u32;
        loop {
            // A value begins here.
            match self.peek() {
                b'"' => {
                    self.skip_string()?;
                }
                bracket @ (b'{' | b'[') => {
                    if outside + open >= MAX_NESTING {
                        return Err(self.fault("at most 127 levels of arrays and objects"));
                    }
                    let object = bracket == b'{';
                    self.pos += 1;
                    self.skip_white();
                    if self.peek() == if object { b'}' } else { b']' } {
                        self.pos += 1;
                    } else {
                        levels = levels << 1 | u128::from(object);
                        open += 1;
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b'-' | b'0'..=b'9' => self.skip_number()?,
                b't' => self.skip_literal("true")?,
                b'f' => self.skip_literal("false")?,
                b'n' => self.skip_literal("null")?,
                _ => return Err(self.fault("a value")),
            }
            // A value ended here.
            loop {
                if open == 0 {
                    return Ok(());
                }
                let object = levels & 1 == 1;
                self.skip_white();
                match self.peek() {
                    b',' => {
                        self.pos += 1;
                        self.skip_white();
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    b'}' if object => {}
                    b']' if !object => {}
                    _ => return Err(self.fault(if object { "`,` or `}`" } else { "`,` or `]`" })),
                }
                self.pos += 1;
                levels >>= 1;
                open -= 1;
            }
        }
    }

    /// Scans a key, the colon and the white space around that.
    fn key(&mut self) -> Result<Key<'a>, Fault> {
        if self.peek() != b'"' {
            return Err(self.fault("a key in double quotes"));
        }
        let start = self.pos + 1;
        let escaped = self.skip_string()?;
        let inside = self.text.get(start..self.pos - 1).unwrap_or_default();
        self.skip_white();
        self.byte(b':', "`:`")?;
        self.skip_white();
        Ok(Key { inside, escaped })
    }

    /// Scans the string whose first quote is at the position, and tells whether it has escapes.
    fn skip_string(&mut self) -> Result<bool, Fault> {
        self.pos += 1;
        let mut escaped = false;
        loop {
            self.pos += plain_len(self.text.as_bytes().get(self.pos..).unwrap_or_default());
            match self.peek() {
                b'"' => {
                    self.pos += 1;
                    return Ok(escaped);
                }
                b'\\' => {
                    escaped = true;
                    self.skip_escape()?;
                }
                _ if self.pos == self.text.len() => return Err(self.fault("`\"`, the string's end,")),
                _ => return Err(self.fault("control characters only as escapes,")),
            }
        }
    }

    fn skip_escape(&mut self) -> Result<(), Fault> {
        self.pos += 1;
        match self.peek() {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.pos += 1,
            b'u' => {
                self.pos += 1;
                for _ in 0..4 {
                    if !self.peek().is_ascii_hexdigit() {
                        return Err(self.fault("four hexadecimal digits"));
                    }
                    self.pos += 1;
                }
            }
            _ => return Err(self.fault("one of `\"\\/bfnrtu` after a backslash")),
        }
        Ok(())
    }

    fn skip_number(&mut self) -> Result<(), Fault> {
        if self.peek() == b'-' {
            self.pos += 1;
        }
        if self.peek() == b'0' {
            self.pos += 1;
        } else {
            self.skip_digits()?;
        }
        if self.peek() == b'.' {
            self.pos += 1;
            self.skip_digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.pos += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.pos += 1;
            }
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Result<(), Fault> {
        if !self.peek().is_ascii_digit() {
            return Err(self.fault("a digit"));
        }
        while self.peek().is_ascii_digit() {
            self.pos += 1;
        }
        Ok(())
    }

    fn skip_literal(&mut self, literal: &str) -> Result<(), Fault> {
        let rest = self.text.as_bytes().get(self.pos..).unwrap_or_default();
        if !rest.starts_with(literal.as_bytes()) {
            return Err(self.fault("a value"));
        }
        self.pos += literal.len();
        Ok(())
    }

    fn byte(&mut self, byte: u8, expected: &'static str) -> Result<(), Fault> {
        if self.peek() != byte {
            return Err(self.fault(expected));
        }
        self.pos += 1;
        Ok(())
    }

    /// The text from `start` to the position. Both lie beside an ASCII byte, so on a boundary.
    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.pos).unwrap_or_default()
    }

    const fn fault(&self, expected: &'static str) -> Fault {
        Fault { at: self.pos, expected }
    }
}

#[cfg(test)]
mod tests;
