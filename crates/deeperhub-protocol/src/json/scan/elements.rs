//! The elements of an array.

use super::{MAX_NESTING, Scanner};

/// The elements of an array that was scanned before.
#[derive(Debug)]
pub(crate) struct Elements<'a>(Scanner<'a>);

impl<'a> Elements<'a> {
    /// Creates an iterator over the elements of `array`, a valid JSON value without white space
    /// around it. Returns `None` if it is not an array.
    pub(crate) fn new(array: &'a str) -> Option<Self> {
        let mut scanner = Scanner::new(array, MAX_NESTING);
        if scanner.peek() != b'[' {
            return None;
        }
        scanner.pos += 1;
        scanner.skip_white();
        Some(Self(scanner))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let Self(scanner) = self;
        if scanner.peek() == b',' {
            scanner.pos += 1;
            scanner.skip_white();
        }
        // The array ends with `]`, which is not a value.
        let element = scanner.scan_value(0).ok()?;
        scanner.skip_white();
        Some(element)
    }
}
