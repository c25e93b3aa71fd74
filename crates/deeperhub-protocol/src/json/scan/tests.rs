use super::super::RawJson;
use super::*;
use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;

/// Scans a text and returns its value. A text over the nesting limit is not an error here.
fn scan(text: &str) -> Result<&str, SyntaxError> {
    Scanner::new(text, MAX_NESTING).scan_text(0).map(|whole| whole.value)
}

/// Returns the value that serde_json parses from `text`, without white space around it.
fn serde_json_value(text: &str) -> Option<&str> {
    serde_json::from_str::<&RawValue>(text).ok().map(RawValue::get)
}

#[track_caller]
fn check(text: &str, valid: bool) {
    assert_eq!(scan(text).is_ok(), valid, "{text:?}: {:?}", scan(text));
    assert_eq!(serde_json_value(text).is_some(), valid, "{text:?}: serde_json differs from the table");
    assert_eq!(scan(text).ok(), serde_json_value(text));
}

#[test]
fn numbers() {
    for text in [
        "0",
        "-0",
        "7",
        "-10",
        "0.0",
        "1.50",
        "0e0",
        "1E+9",
        "1e-0",
        "1.2e3",
        "123456789012345678901234567890",
        "1e999",
    ] {
        check(text, true);
    }
    for text in [
        "-", "+1", "01", "-01", "00", ".5", "1.", "1.e3", "1e", "1e+", "1.5e", "0x1", "1_0", "1 2",
        "Infinity", "NaN", "-a", "--1", "1.-1", "1e1.5", "٣",
    ] {
        check(text, false);
    }
}

#[test]
fn literals() {
    for text in ["true", "false", "null"] {
        check(text, true);
        check(&text[1..], false);
        check(&text[..text.len() - 1], false);
        check(&text.to_uppercase(), false);
        check(&format!("{text}x"), false);
    }
}

#[test]
fn strings() {
    for inside in [
        "",
        "a",
        "é😀",
        "\u{7f}\u{80}\u{2028}",
        r#"\"\\\/\b\f\n\r\t"#,
        r"\u0000\uABcd",
        r"\ud83d\ude00",
        r"\ud800",
        r"\udc00\ud800",
        "'",
    ] {
        check(&format!("\"{inside}\""), true);
    }
    for text in [
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\U1234\"",
        "\"\\u00é0\"",
        "\"\\u+123\"",
        "\"\n\"",
        "\"\t\"",
        "\"\0\"",
        "\"\u{1f}\"",
        "'a'",
        "\"a\"b",
    ] {
        check(text, false);
    }
}

#[test]
fn control_characters_are_found_at_every_position() {
    for length in 0..200 {
        let text = "é".repeat(length / 2) + &"x".repeat(length % 2);
        check(&format!("\"{text}\""), true);
        check(&format!("\"{text}\u{1}{text}\""), false);
        check(&format!("\"{text}\\n{text}\""), true);
        check(&format!("\"{text}\"{text}x\""), false);
    }
}

#[test]
fn arrays_and_objects() {
    for text in [
        "[]",
        "{}",
        "[ ]",
        "{ }",
        "[1]",
        "[1,2]",
        "[[],{}]",
        r#"{"a":1}"#,
        r#"{"a":{"b":[]},"a":2}"#,
        r#"{"":0}"#,
        "[ 1 , [ ] ]",
        r#"{ "a" : 1 , "b" : 2 }"#,
    ] {
        check(text, true);
    }
    for text in [
        "[",
        "]",
        "{",
        "}",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1}",
        "{]",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{,"a":1}"#,
        r#"{"a" 1}"#,
        r#"{"a":1 "b":2}"#,
        "{a:1}",
        "{1:1}",
        r#"{"a":1]"#,
        r#"["a":1]"#,
        "[]]",
        "[[]",
        "{}{}",
        "[1],",
        "/**/1",
        "[1]//",
    ] {
        check(text, false);
    }
}

#[test]
fn white_space_is_allowed_around_tokens() {
    check(" \t\r\n[ \t\r\n1 \t\r\n] \t\r\n", true);
    assert_eq!(RawJson::parse(" \n{ \"a\" : 1 }\t").map(RawJson::as_str), Ok("{ \"a\" : 1 }"));
    for white in ["\u{a0}", "\u{b}", "\u{c}", "\u{85}", "\u{feff}", "\u{2028}", "\0"] {
        check(&format!("{white}1"), false);
        check(&format!("1{white}"), false);
        check(&format!("[{white}]"), false);
    }
    for empty in ["", " ", "\n\n"] {
        check(empty, false);
    }
}

#[test]
fn the_nesting_limit_equals_that_of_serde_json() {
    for levels in [1, 100, 126, 127, 128, 129, 200, 100_000] {
        for (open, close) in [("[", "]"), ("{\"a\":[", "]}"), ("[ {\"a\":1,\"b\": ", "}]")] {
            let times = levels / (open.matches(['[', '{']).count());
            let text = open.repeat(times) + "[]" + &close.repeat(times);
            let whole = Scanner::new(&text, MAX_NESTING).scan_text(0).unwrap();
            let is_within_serde_limit = serde_json::from_str::<Value>(&text).is_ok();
            assert_eq!(
                (whole.value.len(), whole.too_deep),
                (text.len(), !is_within_serde_limit),
                "{levels} of {open}"
            );
        }
    }
    let levels = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert!(RawJson::parse(&levels(RawJson::MAX_NESTING)).is_ok());
    assert!(RawJson::parse(&levels(RawJson::MAX_NESTING + 1)).is_err());
}

#[test]
fn values_over_the_nesting_limit_are_validated_to_their_end() {
    for (deep, is_json) in [
        (r#"[[1],{"a":[{}],"b":{}},[]]"#, true),
        (r#"{"a":[[[]]],"b":null}"#, true),
        ("[[[1,]]]", false),
        ("[[[}]]", false),
        ("[[[", false),
        (r#"{"a":{"b"}}"#, false),
        (r#"[[["]]]"#, false),
    ] {
        for limit in [0, 1, 2] {
            for text in [deep.to_owned(), format!("[0,{deep},[1]]"), format!(r#"{{"x":{deep},"y":"]"}}"#)] {
                let whole = Scanner::new(&text, limit).scan_text(0);
                assert_eq!(whole.is_ok(), is_json, "{text}");
                assert!(
                    whole.is_err() || whole == Ok(ScannedText { value: &text, too_deep: true }),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn closed_levels_do_not_count_as_nesting() {
    let row = "[[[{\"a\":[]}]]],".repeat(1000);
    check(&format!("[{row}1]"), true);
}

#[test]
fn a_syntax_error_names_the_expected_token_and_offset() {
    for (text, at, expected) in [
        ("", 0, "a value"),
        ("[1,]", 3, "a value"),
        (r#"{"a" 1}"#, 5, "`:`"),
        ("[1 2]", 3, "`,` or `]`"),
        ("1 x", 2, "the end"),
    ] {
        assert_eq!(scan(text), Err(SyntaxError { at, expected }), "{text}");
    }
    let error = RawJson::parse("[1,]").unwrap_err();
    assert_eq!(error.to_string(), "the text is not JSON: expected a value at byte 3");
}

#[test]
fn members_of_an_object_are_found() {
    let text = r#"{ "a" : [1, 2] , "\u0062":{"c":3},"\ud800":null}"#;
    let (mut scanner, mut members) = (Scanner::new(text, MAX_NESTING), Vec::new());
    let object = scanner.scan_object(|scanner, key| {
        members.push((key.find(str::to_owned), scanner.scan_value(1)?));
        Ok(())
    });
    assert_eq!(object, Ok(text));
    let expected = [("a", "[1, 2]"), ("b", r#"{"c":3}"#), ("", "null")];
    assert_eq!(members, expected.map(|(key, value)| (key.to_owned(), value)));
}

/// Returns a strategy for JSON texts that serde_json writes, some with white space.
fn document() -> impl Strategy<Value = String> {
    let text =
        prop_oneof!["[a-z]{0,20}".boxed(), any::<String>().boxed(), "[ -~é\\PC\"\\\\]{0,120}".boxed(),];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    let tree = leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((text.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    (tree, any::<bool>()).prop_map(|(tree, pretty)| {
        if pretty { serde_json::to_string_pretty(&tree).unwrap() } else { tree.to_string() }
    })
}

/// Returns a strategy for random sequences of JSON tokens, which random text seldom contains.
fn tokens() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\"",
        "\\",
        "\\u",
        "d83d",
        "\\n",
        " ",
        "\n",
        "0",
        "1",
        "-",
        ".",
        "e",
        "E+",
        "true",
        "null",
        "\"a\"",
        "\"a\":",
        "é",
        "\u{1}",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ]);
    prop::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn documents_are_scanned_like_serde_json(
        text in document(),
        (at, replacement) in (any::<prop::sample::Index>(), prop_oneof![Just(String::new()), tokens(), "\\PC"]),
        len in 0usize..3,
    ) {
        prop_assert_eq!(scan(&text).ok(), Some(text.as_str()));
        // Repeat with a few bytes removed or replaced.
        let at = text.floor_char_boundary(at.index(text.len() + 1));
        let end = text.ceil_char_boundary((at + len).min(text.len()));
        let mutated = format!("{}{replacement}{}", &text[..at], &text[end..]);
        prop_assert_eq!(scan(&mutated).ok(), serde_json_value(&mutated), "{:?}", mutated);
    }

    #[test]
    fn random_tokens_are_scanned_like_serde_json(text in tokens()) {
        prop_assert_eq!(scan(&text).ok(), serde_json_value(&text), "{:?}", text);
    }

    #[test]
    fn any_text_is_scanned_like_serde_json(text in any::<String>()) {
        prop_assert_eq!(scan(&text).ok(), serde_json_value(&text));
    }
}

#[test]
fn the_elements_of_an_array_are_returned_in_order() {
    let elements = |array| Elements::new(array).map(Iterator::collect::<Vec<_>>);
    for empty in ["[]", "[ ]", "[\n\t]"] {
        assert_eq!(elements(empty), Some(vec![]), "{empty:?}");
    }
    assert_eq!(elements("[1]"), Some(vec!["1"]));
    let array = r#"[ {"a":[1,2]} ,"],[" , [] ,null,-1.5e3 ]"#;
    assert_eq!(elements(array), Some(vec![r#"{"a":[1,2]}"#, r#""],[""#, "[]", "null", "-1.5e3"]));
    for other in ["{}", r#""[]""#, "1", "null"] {
        assert_eq!(elements(other), None, "{other}");
    }
    let mut ended = Elements::new("[1]").unwrap();
    assert_eq!((ended.next(), ended.next(), ended.next()), (Some("1"), None, None));
}
