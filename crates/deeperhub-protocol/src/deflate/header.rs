//! The grammar of `Sec-WebSocket-Extensions` (RFC 6455 section 9.1).

use std::borrow::Cow;

/// One list element: an extension's name and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extension<'a> {
    pub(super) name: &'a str,
    pub(super) parameters: Vec<Parameter<'a>>,
}

/// A parameter, `name` or `name=value`. A value that was a quoted string is stored without its
/// quotes and escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parameter<'a> {
    pub(super) name: &'a str,
    pub(super) value: Option<Cow<'a, str>>,
}

/// Error for a header value that is not a list of extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Parses one header line and appends its elements to `extensions`. Empty elements are skipped, as
/// HTTP lists allow.
pub(super) fn parse<'a>(line: &'a [u8], extensions: &mut Vec<Extension<'a>>) -> Result<(), Malformed> {
    // A valid line is ASCII: even a quoted value must be a token.
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let mut reader = Reader { rest: line };
    loop {
        reader.skip_space();
        if !reader.rest.is_empty() && !reader.rest.starts_with(',') {
            extensions.push(reader.extension()?);
        }
        if reader.rest.is_empty() {
            return Ok(());
        }
        if !reader.skip(',') {
            return Err(Malformed);
        }
    }
}

/// A reader of the rest of a header line. Each method also skips the white space after the item
/// that it reads.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn extension(&mut self) -> Result<Extension<'a>, Malformed> {
        let name = self.token()?;
        let mut parameters = Vec::new();
        while self.skip(';') {
            let name = self.token()?;
            let value = if self.skip('=') { Some(self.value()?) } else { None };
            parameters.push(Parameter { name, value });
        }
        Ok(Extension { name, parameters })
    }

    fn value(&mut self) -> Result<Cow<'a, str>, Malformed> {
        let Some(quoted) = self.rest.strip_prefix('"') else { return self.token().map(Cow::Borrowed) };
        let mut unescaped = String::new();
        let mut escaped = false;
        for (at, character) in quoted.char_indices() {
            match character {
                _ if escaped => {
                    unescaped.push(character);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.rest = quoted.get(at + 1..).unwrap_or_default();
                    self.skip_space();
                    // RFC 6455 section 9.1: "the value after quoted-string unescaping MUST conform
                    // to the 'token' ABNF".
                    let is_token = !unescaped.is_empty() && unescaped.bytes().all(is_token_byte);
                    return if is_token { Ok(Cow::Owned(unescaped)) } else { Err(Malformed) };
                }
                _ => unescaped.push(character),
            }
        }
        Err(Malformed)
    }

    fn token(&mut self) -> Result<&'a str, Malformed> {
        let len = self.rest.bytes().position(|byte| !is_token_byte(byte)).unwrap_or(self.rest.len());
        if len == 0 {
            return Err(Malformed);
        }
        let (token, rest) = self.rest.split_at(len);
        self.rest = rest;
        self.skip_space();
        Ok(token)
    }

    /// Skips `separator` and returns `true` if the rest starts with it.
    fn skip(&mut self, separator: char) -> bool {
        let Some(rest) = self.rest.strip_prefix(separator) else { return false };
        self.rest = rest;
        self.skip_space();
        true
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }
}

/// Returns `true` if `byte` is allowed in a token (RFC 9110 section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Checks the extensions in `line`, each written as `name(parameter)(parameter=value)`.
    fn check(line: &str, expected: Option<&[&str]>) {
        let mut extensions = Vec::new();
        let result = parse(line.as_bytes(), &mut extensions);
        let shown = result.ok().map(|()| extensions.iter().map(show).collect::<Vec<_>>());
        let expected =
            expected.map(|all| all.iter().map(|&extension| extension.to_owned()).collect::<Vec<_>>());
        assert_eq!(shown, expected, "{line:?}");
    }

    fn show(extension: &Extension<'_>) -> String {
        let mut shown = extension.name.to_owned();
        for Parameter { name, value } in &extension.parameters {
            shown += &value.as_ref().map_or(format!("({name})"), |value| format!("({name}={value})"));
        }
        shown
    }

    #[test]
    fn lists_are_parsed() {
        check("foo", Some(&["foo"]));
        check("foo; bar; baz=2", Some(&["foo(bar)(baz=2)"]));
        check("deflate-stream", Some(&["deflate-stream"]));
        check(
            "mux; max-channels=4; flow-control, deflate-stream",
            Some(&["mux(max-channels=4)(flow-control)", "deflate-stream"]),
        );
        check("private-extension", Some(&["private-extension"]));
        check("\t foo\t;\tbar = 1 ,  foo ", Some(&["foo(bar=1)", "foo"]));
        check(", foo,, bar ,", Some(&["foo", "bar"]));
        check("", Some(&[]));
    }

    #[test]
    fn quoted_values_are_tokens_in_quotes() {
        check("foo; bar=\"10\"", Some(&["foo(bar=10)"]));
        check("foo; bar=\"1\\0\" ; baz", Some(&["foo(bar=10)(baz)"]));
        for line in [
            "foo; bar=\"\"",
            "foo; bar=\"a b\"",
            "foo; bar=\"a",
            "foo; bar=\"a\\",
            "foo; bar=\"a\\\"",
            "foo; bar=\"a,b\"",
            "foo; bar=\"ü\"",
            "foo; bar=\"a\"b",
            "foo; \"bar\"",
            "\"foo\"",
        ] {
            check(line, None);
        }
    }

    #[test]
    fn a_header_that_is_not_a_list_is_malformed() {
        for line in [
            "foo;",
            "foo; ",
            "foo;;bar",
            "foo; =1",
            "foo; bar=",
            "foo; bar=;",
            "foo bar",
            "foo=1",
            ";",
            "=",
            "f\u{e4}",
        ] {
            check(line, None);
        }
        assert_eq!(parse(b"foo\xff", &mut Vec::new()), Err(Malformed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_valid_list_is_parsed(
            list in proptest::collection::vec(
                (
                    "[a-z0-9!#$%&'*+.^_`|~-]{1,6}",
                    proptest::collection::vec(("[a-zA-Z-]{1,4}", proptest::option::of(("[0-9a-z]{1,3}", 0..3usize))), 0..4),
                ),
                0..4,
            ),
            space in "[ \t]{0,2}",
        ) {
            let (mut line, mut expected) = (space.clone(), Vec::new());
            for (name, parameters) in &list {
                line += name;
                let mut shown = name.clone();
                for (name, value) in parameters {
                    line += &format!("{space};{space}{name}");
                    shown += &match value {
                        None => format!("({name})"),
                        Some((value, form)) => {
                            line += &match form {
                                0 => format!("{space}={space}{value}"),
                                1 => format!("{space}={space}\"{value}\""),
                                _ => format!("=\"\\{value}\""),
                            };
                            format!("({name}={value})")
                        }
                    };
                }
                expected.push(shown);
                line += &format!("{space},{space}");
            }
            let expected: Vec<_> = expected.iter().map(String::as_str).collect();
            check(&line, Some(&expected));
        }

        #[test]
        fn any_text_is_parsed_or_malformed(line in "[a-c0-9;=, \"\\\\ü\t-]{0,30}") {
            let mut extensions = Vec::new();
            let _ = parse(line.as_bytes(), &mut extensions);
        }
    }
}
