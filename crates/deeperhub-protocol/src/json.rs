/// The bytes of one complete, valid JSON value, as they came: never re-serialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawJson<'a>(&'a str);
impl<'a> RawJson<'a> {
    /// Checks that `text` is exactly one JSON value (surrounding white space is cut off).
    pub fn parse(text: &'a str) -> Result<Self, crate::message::MessageError<'a>> { let _ = text; unimplemented!() }
    pub fn as_str(self) -> &'a str { self.0 }
}
