//! A publish in the form that most clients write.
//!
//! A comparison with the text of the keys takes a third of the instructions of the scan for keys in
//! any order.

use super::super::{MessageId, TraceContext};
use super::{ClientMessage, Command};
use crate::json::Scanner;
use crate::{RawJson, Topic};
use std::borrow::Cow;

impl<'a> ClientMessage<'a> {
    /// Parses a publish whose keys are in the order of the documentation, and that has neither white
    /// space nor escapes around its payload. Returns `None` for any other text, valid or not.
    #[inline(always)]
    pub(super) fn parse_usual_publish(text: &'a str, max_nesting: u32) -> Option<Self> {
        let mut scanner = Scanner::new(text, max_nesting);
        scanner.accept(br#"{"type":"publish","#)?;
        let mut id = None;
        if scanner.accept(br#""id":"#).is_some() {
            id = Some(MessageId::from_json(scanner.scan_value(1).ok()?)?);
            scanner.accept(b",")?;
        }
        scanner.accept(br#""data":{"topic":"#)?;
        let topic = Topic::parse(scanner.plain_string()?).ok()?;
        scanner.accept(br#","message":"#)?;
        let message = RawJson::scanned(scanner.scan_value(2).ok()?);
        let exclude_self = scanner.accept(br#","exclude_self":true"#).is_some();
        let mut once = None;
        if scanner.accept(br#","once":"#).is_some() {
            let text = scanner.plain_string()?;
            if text.len() > Command::MAX_ONCE_BYTES {
                return None;
            }
            once = Some(Cow::Borrowed(text));
        }
        scanner.accept(b"}}")?;
        if !scanner.is_at_end() || scanner.is_too_deep() {
            return None;
        }
        let command = Command::Publish { topic, message, exclude_self, once };
        Some(Self { id, trace: TraceContext::default(), command })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::message::ClientMessage;

    fn usual(text: &str) -> Option<ClientMessage<'_>> {
        ClientMessage::parse_usual_publish(text, 127)
    }

    #[test]
    fn forms_of_clients_are_recognized() {
        for text in [
            r#"{"type":"publish","data":{"topic":"a.b","message":{"n":[1,"\u00e9 \" }"]}}}"#,
            r#"{"type":"publish","id":7,"data":{"topic":"a","message":null,"once":"k3-7"}}"#,
            r#"{"type":"publish","id":"x","data":{"topic":"é","message":0,"exclude_self":true,"once":"y"}}"#,
        ] {
            let message = usual(text);
            assert!(message.is_some(), "{text}");
            assert_eq!(message, ClientMessage::parse_any(text, 127).ok());
        }
    }

    #[test]
    fn other_texts_are_left_to_the_scan() {
        let long = "x".repeat(65);
        for text in [
            r#"{"type":"publish","data":{"topic":"a","message":1}} "#,
            r#"{"type":"publish","data":{"topic":"a","message":1},"id":7}"#,
            r#"{"type":"publish","data":{"topic":"\u0061","message":1}}"#,
            r#"{"type":"publish","data":{"topic":"a..b","message":1}}"#,
            r#"{"type":"publish","data":{"topic":"a","message":1,"topic":"b"}}"#,
            r#"{"type":"publish","data":{"topic":"a","message":tru}}"#,
            r#"{"type":"publish","data":{"topic":"a","message":1}"#,
            r#"{"type":"publish","id":-1,"data":{"topic":"a","message":1}}"#,
            &format!(r#"{{"type":"publish","data":{{"topic":"a","message":1,"once":"{long}"}}}}"#),
        ] {
            assert_eq!(usual(text), None, "{text}");
        }
        let deep = r#"{"type":"publish","data":{"topic":"a","message":[[]]}}"#;
        assert!(usual(deep).is_some() && ClientMessage::parse_usual_publish(deep, 3).is_none());
    }

    fn part(parts: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
        prop::sample::select(parts)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn the_scan_gives_the_same(
            id in part(&["", r#""id":1,"#, r#""id":"a\"","#, r#""id":[],"#, r#""id":1,"id":1,"#, r#""id":1"#]),
            topic in part(&[r#""a""#, r#""a.b.$c""#, r#""""#, r#""\n""#, r#""a*""#, "1", r#""a"#]),
            message in part(&["1", "-0.5e3", r#""a\"b""#, "[{},[]]", "[[[]]]", r#"{"a":{"b":1}}"#, "01", "[1", ""]),
            rest in part(&["", r#","exclude_self":true"#, r#","exclude_self":false"#, r#","once":"a""#, r#","once":1"#,
                r#","exclude_self":true,"once":"a""#, r#","once":"a","exclude_self":true"#, r#","message":1"#]),
            end in part(&["}}", "}", "}} ", "}}}", r#"},"meta":{}}"#]),
            max_nesting in 2..6_u32,
        ) {
            let text =
                format!(r#"{{"type":"publish",{id}"data":{{"topic":{topic},"message":{message}{rest}{end}"#);
            if let Some(message) = ClientMessage::parse_usual_publish(&text, max_nesting) {
                prop_assert_eq!(Ok(message), ClientMessage::parse_any(&text, max_nesting));
            }
        }
    }
}
