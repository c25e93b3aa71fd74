use super::*;
use crate::RawJson;
use crate::message::{MAX_NESTING, check_server_object_within};
use proptest::prelude::*;
use serde_json::Value;

fn command(text: &str) -> Command<'_> {
    match ClientMessage::parse(text) {
        Ok(message) => message.command,
        Err(error) => panic!("{text}: {error:?}"),
    }
}

fn raw(text: &str) -> RawJson<'_> {
    RawJson::parse(text).unwrap()
}

fn subscribe(text: &str) -> Command<'_> {
    Command::Subscribe { subscription: Subscription::parse(text).unwrap() }
}

fn publish<'a>(topic: &'a str, message: &'a str, exclude_self: bool) -> Command<'a> {
    Command::Publish { topic: Topic::parse(topic).unwrap(), message: raw(message), exclude_self }
}

/// Returns the code, the field and the ID of the error for `text`.
#[track_caller]
fn refused(text: &str) -> (&'static str, Option<&'static str>, Option<&str>) {
    match ClientMessage::parse(text) {
        Ok(message) => panic!("{text}: {message:?}"),
        Err(error) => {
            assert!(!error.message.is_empty());
            (error.code.as_str(), error.field, error.id.map(MessageId::as_json))
        }
    }
}

#[test]
fn every_type_is_parsed() {
    for (text, expected) in [
        (r#"{"type":"echo","data":[1, 2.50]}"#, Command::Echo { data: raw("[1, 2.50]") }),
        (r#"{"type":"echo","data":null}"#, Command::Echo { data: raw("null") }),
        (r#"{"type":"subscribe","data":{"topic":"a.b"}}"#, subscribe("a.b")),
        (r#"{"type":"subscribe","data":{"topic":"a.*"}}"#, subscribe("a.*")),
        (
            r#"{"type":"unsubscribe","data":{"topic":"a.>"}}"#,
            Command::Unsubscribe { subscription: Subscription::parse("a.>").unwrap() },
        ),
        (r#"{"type":"publish","data":{"topic":"a","message":null}}"#, publish("a", "null", false)),
        (
            r#"{"type":"publish","data":{"topic":"a","message":{"topic":"*"},"exclude_self":true}}"#,
            publish("a", r#"{"topic":"*"}"#, true),
        ),
        (
            r#"{"type":"publish","data":{"exclude_self":false,"message":"x","topic":"a"}}"#,
            publish("a", r#""x""#, false),
        ),
        (
            r#"{"type":"authenticate","data":{"token":"a.b.c"}}"#,
            Command::Authenticate { token: "a.b.c".into() },
        ),
        (r#"{"type":"authenticate","data":{"token":""}}"#, Command::Authenticate { token: "".into() }),
        (r#"{"type":"ping"}"#, Command::Ping),
        (r#"{"type":"ping","data":[{"topic":1,"topic":2}]}"#, Command::Ping),
    ] {
        assert_eq!(command(text), expected, "{text}");
    }
}

#[test]
fn the_table_of_types_agrees_with_the_parser() {
    let data = r#"{"topic":"a","message":1,"token":"t"}"#;
    for (index, name) in Command::TYPES.iter().enumerate() {
        assert_eq!(command(&format!(r#"{{"type":"{name}","data":{data}}}"#)).index(), index, "{name}");
        let error = ClientMessage::parse(r#"{"type":"x"}"#).unwrap_err();
        assert!(error.message.contains(name), "the error message names {name}");
    }
}

#[test]
fn keys_in_any_order_and_white_space_are_accepted() {
    let text = "\r\n\t { \"data\" : { \"message\" : [ 1 ,2 ] ,\n\"topic\":\"t\" } , \"id\"\t:7, \"type\" :\"publish\" } \n";
    let message = ClientMessage::parse(text).unwrap();
    assert_eq!(message.command, publish("t", "[ 1 ,2 ]", false));
    assert_eq!(message.id.map(MessageId::as_json), Some("7"));
}

#[test]
fn escapes_in_keys_and_strings_are_decoded() {
    let text = r#"{"\u0074ype":"sub\u0073cribe","d\u0061ta":{"\u0074opic":"caf\u00e9.\ud83d\ude00"},"\u0069d":"\u0061"}"#;
    let message = ClientMessage::parse(text).unwrap();
    assert_eq!(message.command, subscribe("café.😀"));
    assert_eq!(message.id.map(MessageId::as_json), Some(r#""\u0061""#), "the ID stays as received");
}

#[test]
fn strings_without_escapes_are_borrowed() {
    let Command::Authenticate { token } = command(r#"{"type":"authenticate","data":{"token":"abc"}}"#) else {
        panic!("another type");
    };
    assert!(matches!(token, Cow::Borrowed("abc")));
}

#[test]
fn unknown_keys_are_ignored_even_if_duplicated() {
    let text = r#"{"x":1,"x":2,"Type":3,"type":"subscribe","token":[],"data":{"topic":"a","y":{},"y":0,
        "message":1,"message":2,"type":1,"\ud800":1},"exclude_self":5,"\udc00":1,"":[]}"#;
    assert_eq!(command(text), subscribe("a"));
}

#[test]
fn null_for_an_optional_key_counts_as_absent() {
    let text =
        r#"{"type":"publish","id":null,"meta":null,"data":{"topic":"a","message":1,"exclude_self":null}}"#;
    let message = ClientMessage::parse(text).unwrap();
    assert_eq!((message.id, message.trace.is_empty()), (None, true));
    assert_eq!(message.command, publish("a", "1", false));
    let traced = r#"{"type":"ping","data":null,"meta":{"traceparent":null,"tracestate":null}}"#;
    assert_eq!(ClientMessage::parse(traced).map(|message| message.trace.is_empty()), Ok(true));
    assert_eq!(command(r#"{"type":"subscribe","topic":"a","data":null}"#), subscribe("a"));
    // A `null` payload stays `null`, and required keys stay required.
    assert_eq!(command(r#"{"type":"echo","data":null}"#), Command::Echo { data: raw("null") });
    assert_eq!(
        command(r#"{"type":"publish","data":{"topic":"a","message":null}}"#),
        publish("a", "null", false)
    );
    for (text, field) in [
        (r#"{"type":null}"#, "type"),
        (r#"{"type":"subscribe","data":{"topic":null}}"#, "topic"),
        (r#"{"type":"authenticate","data":{"token":null}}"#, "token"),
        (r#"{"type":"ping","id":null,"id":1}"#, "id"),
    ] {
        assert_eq!(refused(text), ("invalid_message", Some(field), None), "{text}");
    }
}

#[test]
fn payloads_keep_their_bytes() {
    for payload in [
        r#"{"b":1,"a":2}"#,
        "1e999999",
        "-0.00",
        "12345678901234567890123456789.10",
        r#""\u00e9\/\ud800""#,
        "[ 1 ,\n\t{ } ]",
        "\"\u{7f}é😀\"",
    ] {
        let echo = format!(r#"{{"type":"echo","data": {payload} }}"#);
        let Command::Echo { data } = command(&echo) else { panic!("{echo}") };
        assert_eq!(data.as_str(), payload);
        let publish =
            format!("{{\"type\":\"publish\",\"data\":{{\"topic\":\"a\",\"message\":\n{payload}\r}}}}");
        let Command::Publish { message, .. } = command(&publish) else { panic!("{publish}") };
        assert_eq!(message.as_str(), payload);
    }
}

#[test]
fn topic_and_message_are_accepted_in_the_envelope() {
    for (text, expected) in [
        (r#"{"type":"subscribe","topic":"a"}"#, subscribe("a")),
        (r#"{"type":"subscribe","topic":"a","data":{}}"#, subscribe("a")),
        (r#"{"topic":"a","message":{"m":1},"type":"publish"}"#, publish("a", r#"{"m":1}"#, false)),
        (
            r#"{"type":"publish","topic":"a","data":{"message":1,"exclude_self":true}}"#,
            publish("a", "1", true),
        ),
        (r#"{"type":"publish","message":2,"data":{"topic":"a"}}"#, publish("a", "2", false)),
        (
            r#"{"type":"echo","topic":1,"message":2,"data":{"topic":3}}"#,
            Command::Echo { data: raw(r#"{"topic":3}"#) },
        ),
    ] {
        assert_eq!(command(text), expected, "{text}");
    }
    let text = r#"{"type":"publish","topic":"a","message":1,"exclude_self":true}"#;
    assert_eq!(command(text), publish("a", "1", false), "other keys are ignored in the envelope");
    assert_eq!(refused(r#"{"type":"authenticate","token":"a"}"#), ("invalid_message", Some("token"), None));
}

#[test]
fn ids_are_returned_as_received() {
    for id in [r#""""#, r#""a\/b""#, "0", "18446744073709551615"] {
        let text = format!(r#"{{"type":"ping","id":{id}}}"#);
        assert_eq!(ClientMessage::parse(&text).unwrap().id.map(MessageId::as_json), Some(id));
        let text = format!(r#"{{"type":"pang","id":{id}}}"#);
        assert_eq!(refused(&text), ("unknown_type", Some("type"), Some(id)));
    }
    assert_eq!(ClientMessage::parse(r#"{"type":"ping"}"#).unwrap().id, None);
}

#[test]
fn errors_for_invalid_json_have_no_id() {
    for text in [
        "",
        " ",
        "hello",
        r#"{"type":"ping","id":1"#,
        r#"{"type":"ping","id":1}}"#,
        r#"{"type":"ping","id":1} x"#,
        r#"{"type":"ping","id":1,}"#,
        r#"{"id":1,"type":"ping","data":{"a":01}}"#,
        r#"{"id":1,"type":"ping","data":tru}"#,
        r#"{"id":1,"type":"ping",data:1}"#,
        "{\"id\":1,\"type\":\"ping\",\"data\":\"\n\"}",
        "{\"id\":1,\"type\":\"ping\"}\0",
        "{'type':'ping'}",
        "\u{feff}{\"type\":\"ping\"}",
        "{\"type\":\"ping\"}\u{a0}",
        "{\"type\":\"ping\"} {\"type\":\"ping\"}",
        r#"{"type":"ping","data":"\x"}"#,
        r#"{"type":"ping","data":NaN}"#,
        "[1,2",
    ] {
        assert_eq!(refused(text), ("invalid_json", None, None), "{text:?}");
    }
}

#[test]
fn json_other_than_an_object_is_rejected() {
    for text in ["null", "1", "\"ping\"", "[]", r#"[{"type":"ping"}]"#, " true "] {
        assert_eq!(refused(text), ("invalid_message", None, None), "{text}");
    }
}

/// Messages that are JSON but invalid, with the code and field of the error. The ID is always 7.
#[test]
fn errors_name_the_missing_or_invalid_key() {
    let invalid = "invalid_message";
    for (members, code, field) in [
        // The envelope.
        (r#""data":{}"#, invalid, "type"),
        (r#""type":null"#, invalid, "type"),
        (r#""type":1"#, invalid, "type"),
        (r#""type":["ping"]"#, invalid, "type"),
        (r#""type":"ping","type":"ping""#, invalid, "type"),
        (r#""type":"ping","\u0074ype":1"#, invalid, "type"),
        (r#""type":"echo","data":1,"data":1"#, invalid, "data"),
        (r#""type":"ping","data":{},"data":{}"#, invalid, "data"),
        (r#""type":"ping","meta":{},"meta":{}"#, invalid, "meta"),
        (r#""type":"ping","meta":[]"#, invalid, "meta"),
        (r#""type":"ping","meta":"a""#, invalid, "meta"),
        (r#""type":"PING""#, "unknown_type", "type"),
        (r#""type":"""#, "unknown_type", "type"),
        (r#""type":"\ud800""#, "unknown_type", "type"),
        (r#""type":"message","data":{"topic":1}"#, "unknown_type", "type"),
        // echo
        (r#""type":"echo""#, invalid, "data"),
        // subscribe, unsubscribe
        (r#""type":"subscribe""#, invalid, "topic"),
        (r#""type":"subscribe","data":{}"#, invalid, "topic"),
        (r#""type":"subscribe","data":{"topic":null}"#, invalid, "topic"),
        (r#""type":"subscribe","data":{"topic":["a"]}"#, invalid, "topic"),
        (r#""type":"subscribe","data":"a""#, invalid, "data"),
        (r#""type":"subscribe","data":null"#, invalid, "topic"),
        (r#""type":"subscribe","data":{"topic":"a","topic":"a"}"#, invalid, "topic"),
        (r#""type":"subscribe","data":{"topic":"a"},"topic":"a""#, invalid, "topic"),
        (r#""type":"subscribe","topic":"a","topic":"a""#, invalid, "topic"),
        (r#""type":"unsubscribe","data":{}"#, invalid, "topic"),
        (r#""type":"unsubscribe","data":7"#, invalid, "data"),
        (r#""type":"unsubscribe","data":{"topic":"a","topi\u0063":"a"}"#, invalid, "topic"),
        // publish
        (r#""type":"publish""#, invalid, "topic"),
        (r#""type":"publish","data":[]"#, invalid, "data"),
        (r#""type":"publish","data":{"message":1}"#, invalid, "topic"),
        (r#""type":"publish","data":{"topic":7,"message":1}"#, invalid, "topic"),
        (r#""type":"publish","data":{"topic":"a"}"#, invalid, "message"),
        // A missing or invalid key precedes an invalid topic.
        (r#""type":"publish","data":{"topic":"","exclude_self":true}"#, invalid, "message"),
        (r#""type":"publish","data":{"topic":"\ud800"}"#, invalid, "message"),
        (r#""type":"publish","data":{"topic":"*","message":1,"exclude_self":1}"#, invalid, "exclude_self"),
        (r#""type":"publish","data":{"topic":"a","message":1,"message":1}"#, invalid, "message"),
        (r#""type":"publish","message":1,"data":{"topic":"a","message":1}"#, invalid, "message"),
        (
            r#""type":"publish","data":{"topic":"a","message":1,"exclude_self":"true"}"#,
            invalid,
            "exclude_self",
        ),
        (r#""type":"publish","data":{"topic":"a","message":1,"exclude_self":1}"#, invalid, "exclude_self"),
        (
            r#""type":"publish","data":{"exclude_self":true,"topic":"a","message":1,"exclude_self":true}"#,
            invalid,
            "exclude_self",
        ),
        // authenticate
        (r#""type":"authenticate""#, invalid, "token"),
        (r#""type":"authenticate","data":"a.b.c""#, invalid, "data"),
        (r#""type":"authenticate","data":{"token":null}"#, invalid, "token"),
        (r#""type":"authenticate","data":{"token":"\udfff"}"#, invalid, "token"),
        (r#""type":"authenticate","data":{"token":"a","token":"a"}"#, invalid, "token"),
        // Topics.
        (r#""type":"subscribe","data":{"topic":""}"#, "invalid_topic", "topic"),
        (r#""type":"subscribe","data":{"topic":"a b"}"#, "invalid_topic", "topic"),
        (r#""type":"subscribe","data":{"topic":"a\u0020b"}"#, "invalid_topic", "topic"),
        (r#""type":"subscribe","data":{"topic":"$sys.x"}"#, "invalid_topic", "topic"),
        (r#""type":"subscribe","data":{"topic":"a*"}"#, "invalid_topic", "topic"),
        (r#""type":"subscribe","data":{"topic":"\ud800"}"#, "invalid_topic", "topic"),
        (r#""type":"unsubscribe","data":{"topic":"a..b"}"#, "invalid_topic", "topic"),
        (r#""type":"publish","data":{"topic":"a.*","message":1}"#, "invalid_topic", "topic"),
        (r#""type":"publish","data":{"topic":">","message":1}"#, "invalid_topic", "topic"),
        (r#""type":"publish","data":{"topic":"$a","message":1}"#, "invalid_topic", "topic"),
        (r#""type":"publish","topic":".","message":1"#, "invalid_topic", "topic"),
        (r#""type":"publish","data":{"topic":"\ud800","message":1}"#, "invalid_topic", "topic"),
    ] {
        let expected = (code, Some(field), Some("7"));
        let (id_first, id_last) = (format!("{{\"id\":7,{members}}}"), format!("{{{members},\"id\":7}}"));
        assert_eq!(refused(&id_first), expected, "{id_first}");
        assert_eq!(refused(&id_last), expected, "{id_last}");
    }
}

#[test]
fn an_invalid_id_is_not_echoed() {
    let too_long = format!("\"{}\"", "x".repeat(65));
    for id in ["-0", "-1", "1.0", "1e3", "18446744073709551616", "[]", "{}", "true", &too_long] {
        let text = format!(r#"{{"type":"ping","id":{id}}}"#);
        assert_eq!(refused(&text), ("invalid_message", Some("id"), None), "{text}");
    }
    assert_eq!(refused(r#"{"id":1,"type":"ping","id":1}"#), ("invalid_message", Some("id"), None));
}

#[test]
fn the_trace_context_is_parsed_from_meta() {
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let parse = |meta: &str| {
        let text = format!(r#"{{"type":"ping","meta":{{{meta}}}}}"#);
        let trace = ClientMessage::parse(&text).unwrap().trace;
        (trace.traceparent.map(Cow::into_owned), trace.tracestate.map(Cow::into_owned))
    };
    let good = Some(traceparent.to_owned());
    assert_eq!(parse(""), (None, None));
    assert_eq!(parse(&format!(r#""x":1,"traceparent":"{traceparent}""#)), (good.clone(), None));
    assert_eq!(
        parse(&format!(r#""tracestate":"a=\u0031","traceparent":"{traceparent}","x":2"#)),
        (good.clone(), Some("a=1".to_owned()))
    );
    assert_eq!(
        parse(&format!(r#""traceparent":1,"traceparent":"{traceparent}""#)),
        (good, None),
        "the last duplicate counts"
    );
    for meta in [
        r#""traceparent":"00-1""#,
        r#""traceparent":7"#,
        r#""tracestate":"a=1""#,
        r#""traceparent":"\ud800""#,
    ] {
        assert_eq!(parse(meta), (None, None), "{meta}");
    }
}

#[test]
fn messages_nest_127_levels() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    for (text, levels) in [
        (r#"{"type":"echo","data":$}"#, MAX_NESTING - 1),
        (r#"{"type":"publish","data":{"topic":"a","message":$}}"#, RawJson::MAX_NESTING),
        (r#"{"type":"publish","topic":"a","message":$}"#, RawJson::MAX_NESTING),
        (r#"{"type":"ping","other":$}"#, MAX_NESTING - 1),
        (r#"{"type":"ping","meta":{"other":$}}"#, MAX_NESTING - 2),
    ] {
        assert!(ClientMessage::parse(&text.replace('$', &nested(levels))).is_ok(), "{text}");
        for levels in [levels + 1, 10_000] {
            let deep = text.replace('$', &nested(levels));
            assert_eq!(refused(&deep), ("invalid_message", None, None), "{text}");
            // The text after the deep value is still parsed: an ID is found, and a syntax error
            // wins.
            let with_id = format!(r#"{},"id":7}}"#, deep.strip_suffix('}').unwrap());
            assert_eq!(refused(&with_id), ("invalid_message", None, Some("7")), "{text}");
            assert_eq!(refused(&deep.replacen(']', "}", 1)), ("invalid_json", None, None), "{text}");
        }
    }
    assert_eq!(refused(&nested(10_000)), ("invalid_message", None, None), "no object");
    assert_eq!(refused(&"[".repeat(1_000_000)), ("invalid_json", None, None));
    assert_eq!(refused(&"{\"a\":".repeat(1_000_000)), ("invalid_json", None, None));
}

#[test]
fn parse_within_applies_a_lower_nesting_limit() {
    for (text, levels) in [
        (r#"{"type":"ping"}"#, 1),
        (r#"{"type":"echo","data":{}}"#, 2),
        (r#"{"type":"subscribe","data":{"topic":"a"}}"#, 2),
        (r#"{"type":"publish","data":{"topic":"a","message":[1]}}"#, 3),
        // In the envelope, the payload counts as deep as in its delivery.
        (r#"{"type":"publish","topic":"a","message":[1]}"#, 3),
        (r#"{"type":"echo","data":[[[1],2],{"a":{"b":3}}]}"#, 4),
    ] {
        for limit in [levels, levels + 1, 127, usize::MAX] {
            assert!(ClientMessage::parse_within(text, limit).is_ok(), "{text}, {limit}");
        }
        if levels <= 2 {
            // `data` itself is scanned even with a lower limit.
            continue;
        }
        let error = ClientMessage::parse_within(text, levels - 1).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidMessage, "{text}");
        assert!(error.message.contains(&format!("the limit of {}", levels - 1)), "{error}");
    }
    assert!(RawJson::parse_within("[[]]", 4).is_ok());
    let error = RawJson::parse_within("[[]]", 3).unwrap_err();
    assert!(error.message.contains("the limit of 1"), "{error}");
    assert!(check_server_object_within(r#"{"type":"a","data":[1]}"#, 2).is_ok());
    assert!(check_server_object_within(r#"{"type":"a","data":[[1]]}"#, 2).is_err());
}

/// Returns a strategy for messages with known keys and plausible values, in any order and number.
pub(in crate::message) fn plausible_message() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("1"),
        Just("-1"),
        Just("null"),
        Just("true"),
        Just(r#""a.b""#),
        Just(r#""a.*""#),
        Just(r#""$a""#),
        Just(r#""\u0061""#),
        Just("[1, {}]"),
        Just(r#"{"topic":"x","traceparent":"y"}"#),
        Just("tru"),
    ];
    let key = prop_oneof![
        8 => prop::sample::select(vec!["topic", "message", "exclude_self", "token", "id", "meta"]),
        1 => Just("other"),
        1 => Just(r"\u0074opic"),
    ];
    let members = prop::collection::vec((key, value), 0..4).prop_map(|members| {
        members.iter().map(|(key, value)| format!(r#""{key}": {value}"#)).collect::<Vec<_>>().join(",")
    });
    let kind = prop::sample::select(Command::TYPES.iter().copied().chain(["other"]).collect::<Vec<_>>());
    (kind, members.clone(), members, any::<bool>()).prop_map(|(kind, outer, data, typed)| {
        let mut text = format!(r#"{{"data": {{{data}}}"#);
        if typed {
            text.push_str(&format!(r#","type":"{kind}""#));
        }
        if !outer.is_empty() {
            text.push(',');
            text.push_str(&outer);
        }
        text.push('}');
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_text_parses_without_panic(text in any::<String>()) {
        let _ = ClientMessage::parse(&text);
    }

    /// Compares a parsed message with serde_json's tree of the same text.
    #[test]
    fn a_parsed_message_agrees_with_serde_json(text in plausible_message()) {
        let tree = serde_json::from_str::<Value>(&text);
        let message = match ClientMessage::parse(&text) {
            Ok(message) => message,
            Err(error) => {
                prop_assert_eq!(tree.is_err(), error.code == ErrorCode::InvalidJson, "{}", text);
                return Ok(());
            }
        };
        let tree = tree.expect("a parsed message is JSON");
        let field = |name: &str| {
            [&tree["data"][name], &tree[name]].into_iter().find(|value| !value.is_null()).cloned().unwrap_or_default()
        };
        prop_assert_eq!(&tree["type"], Command::TYPES[message.command.index()]);
        prop_assert_eq!(message.id.is_some(), !tree["id"].is_null());
        match message.command {
            Command::Echo { data } => prop_assert_eq!(&serde_json::from_str::<Value>(data.as_str())?, &tree["data"]),
            Command::Subscribe { subscription } | Command::Unsubscribe { subscription } => {
                prop_assert_eq!(field("topic"), subscription.as_str());
            }
            Command::Publish { topic, message, exclude_self } => {
                prop_assert_eq!(field("topic"), topic.as_str());
                prop_assert_eq!(serde_json::from_str::<Value>(message.as_str())?, field("message"));
                prop_assert_eq!(exclude_self, tree["data"]["exclude_self"] == true);
            }
            Command::Authenticate { token } => prop_assert_eq!(&tree["data"]["token"], &*token),
            Command::Ping => {}
        }
    }
}
