use super::*;
use crate::Epoch;
use crate::RawJson;
use crate::message::{HistoryOrder, HistoryStart, MAX_NESTING, Recover, check_server_object_within};
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
    Command::Subscribe(request(text, None, 0))
}

fn request(text: &str, recover: Option<Recover>, history: u64) -> SubscribeRequest<'_> {
    SubscribeRequest { subscription: Subscription::parse(text).unwrap(), recover, history }
}

fn publish<'a>(topic: &'a str, message: &'a str, exclude_self: bool) -> Command<'a> {
    Command::Publish { topic: Topic::parse(topic).unwrap(), message: raw(message), exclude_self, once: None }
}

fn history_request(topic: &str) -> HistoryRequest<'_> {
    let topic = Topic::parse(topic).unwrap();
    HistoryRequest { topic, from: None, limit: 100, order: HistoryOrder::Ascending }
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
        (r#"{"type":"history","data":{"topic":"a"}}"#, Command::History(history_request("a"))),
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
        (r#""type":"publish","data":{"topic":"a","message":1,"once":1}"#, invalid, "once"),
        (r#""type":"publish","data":{"topic":"a","message":1,"once":["a"]}"#, invalid, "once"),
        (r#""type":"publish","data":{"topic":"a","message":1,"once":"\ud800"}"#, invalid, "once"),
        (r#""type":"publish","data":{"topic":"a..b","message":1,"once":"a","once":"a"}"#, invalid, "once"),
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
        Just(r#"{"epoch":"k3J9aQx2","offset":41,"time":7}"#),
        Just(r#"[{"topic":"a"},{"topic":"b..c","recover":{"epoch":"x","offset":0}}]"#),
        Just("\"asc\""),
        Just("tru"),
    ];
    let key = prop_oneof![
        8 => prop::sample::select(vec!["topic", "message", "exclude_self", "token", "id", "meta"]),
        4 => prop::sample::select(vec!["topics", "recover", "history", "once", "from", "limit", "order"]),
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

/// JSON values of every kind and of unusual forms.
const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "1",
    "42",
    "1000",
    "1001",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "99999999999999999999",
    "123456789012345678901234567890",
    "-0",
    "-1",
    "-9223372036854775808",
    "-9223372036854775809",
    "1.0",
    "0.5",
    "1e3",
    "1E0",
    "1e-3",
    r#""""#,
    r#""a""#,
    r#""1""#,
    r#""asc""#,
    r#""desc""#,
    r#""ASC""#,
    r#""k3J9aQx2""#,
    r#""\u006b3J9aQx2""#,
    r#""\ud800""#,
    "[]",
    "[1]",
    "{}",
    r#"{"topic":"a"}"#,
];

/// Checks a key with each of [`VALUES`], and with a duplicate. `text` contains the value as `$`.
/// The values in `accepted` parse; the error for the others names `field`.
#[track_caller]
fn check_key(text: &str, key: &str, field: &str, accepted: &[&str]) {
    for value in VALUES {
        let text = text.replace('$', &format!(r#""{key}":{value}"#));
        match ClientMessage::parse(&text) {
            Ok(_) => assert!(accepted.contains(value), "{text}"),
            Err(_) => {
                assert_eq!(refused(&text), ("invalid_message", Some(field), Some("7")));
                assert!(!accepted.contains(value), "{text}");
            }
        }
    }
    let twice = text.replace(
        '$',
        &format!(r#""{key}":{0},"\u00{1:x}{2}":{0}"#, accepted[0], key.as_bytes()[0], &key[1..]),
    );
    assert_eq!(refused(&twice), ("invalid_message", Some(field), Some("7")), "{twice}");
}

const UNSIGNED: &[&str] = &["0", "1", "42", "1000", "1001", "18446744073709551615", "9223372036854775808"];

fn or_null(values: &[&'static str]) -> Vec<&'static str> {
    [values, &["null"]].concat()
}

#[test]
fn keys_of_streams_accept_exactly_their_values() {
    let subscribe = r#"{"id":7,"type":"subscribe","data":{"topic":"a",$}}"#;
    check_key(subscribe, "history", "history", &or_null(UNSIGNED));
    let recover = |members: &str| subscribe.replace('$', &format!(r#""recover":{{{members}}}"#));
    check_key(
        &recover(r#""offset":1,$"#),
        "epoch",
        "epoch",
        &[r#""k3J9aQx2""#, r#""a""#, r#""1""#, r#""asc""#, r#""desc""#, r#""ASC""#, r#""\u006b3J9aQx2""#],
    );
    check_key(&recover(r#""epoch":"a",$"#), "offset", "offset", UNSIGNED);
    check_key(&recover(r#""epoch":"a","offset":1,$"#), "time", "time", &or_null(UNSIGNED));
    check_key(&recover(r#""epoch":"a","offset":1,$"#), "partial", "partial", &["true", "false", "null"]);
    for value in VALUES.iter().filter(|value| **value != "null" && !value.starts_with('{')) {
        let text = subscribe.replace('$', &format!(r#""recover":{value}"#));
        assert_eq!(refused(&text), ("invalid_message", Some("recover"), Some("7")), "{text}");
    }
    let position = r#"{"epoch":"a","offset":1}"#;
    let twice = subscribe.replace('$', &format!(r#""recover":{position},"recover":{position}"#));
    assert_eq!(refused(&twice), ("invalid_message", Some("recover"), Some("7")));

    let publish = r#"{"id":7,"type":"publish","data":{"topic":"a","message":1,$}}"#;
    let strings: Vec<_> =
        VALUES.iter().copied().filter(|value| value.starts_with('"') && !value.contains("ud800")).collect();
    check_key(publish, "once", "once", &or_null(&strings));

    let history = r#"{"id":7,"type":"history","data":{"topic":"a",$}}"#;
    let negative = ["-1", "-9223372036854775808"];
    check_key(history, "from", "from", &[UNSIGNED, &negative, &["null"]].concat());
    check_key(history, "limit", "limit", &["1", "42", "1000", "null"]);
    check_key(history, "order", "order", &[r#""asc""#, r#""desc""#, "null"]);
}

#[test]
fn missing_keys_of_a_position_are_named() {
    for (recover, field) in [("{}", "epoch"), (r#"{"offset":1}"#, "epoch"), (r#"{"epoch":"a"}"#, "offset")] {
        let text = format!(r#"{{"type":"subscribe","data":{{"topic":"a","recover":{recover}}}}}"#);
        assert_eq!(refused(&text), ("invalid_message", Some(field), None), "{text}");
    }
}

#[test]
fn texts_are_measured_without_their_escapes() {
    for (length, is_accepted) in [(64, true), (65, false)] {
        for letter in ["x", r"\u0078"] {
            let text = letter.repeat(length);
            let publish =
                format!(r#"{{"type":"publish","data":{{"topic":"a","message":1,"once":"{text}"}}}}"#);
            match ClientMessage::parse(&publish) {
                Ok(ClientMessage { command: Command::Publish { once, .. }, .. }) => {
                    assert_eq!(once.as_deref(), Some(&*"x".repeat(64)));
                    assert!(is_accepted);
                }
                _ => assert_eq!((refused(&publish).1, is_accepted), (Some("once"), false)),
            }
            let subscribe = format!(
                r#"{{"type":"subscribe","data":{{"topic":"a","recover":{{"epoch":"{text}","offset":1}}}}}}"#
            );
            match ClientMessage::parse(&subscribe) {
                Ok(message) => {
                    let recover = Recover { epoch: None, offset: 1, time: None, partial: false };
                    assert_eq!(message.command, Command::Subscribe(request("a", Some(recover), 0)));
                    assert!(is_accepted);
                }
                Err(_) => assert_eq!((refused(&subscribe).1, is_accepted), (Some("epoch"), false)),
            }
        }
    }
}

#[test]
fn a_subscribe_has_a_position_and_a_number_of_messages() {
    let epoch = Epoch::parse("k3J9aQx2");
    let text = r#"{"type":"subscribe","id":1,"data":{"topic":"chat.42","recover":{"epoch":"k3J9aQx2","offset":41,"time":1796000000001},"history":20,"presence":true}}"#;
    let recover = Recover { epoch, offset: 41, time: Some(1_796_000_000_001), partial: false };
    assert_eq!(command(text), Command::Subscribe(request("chat.42", Some(recover), 20)));
    // A position that the server sent has more keys in other messages, which are ignored.
    let text = r#"{"type":"subscribe","data":{"recover":{"x":1,"x":2,"partial":true,"time":null,"offset":0,"epoch":"k3J9aQx\u0032"},"topic":"a"}}"#;
    let recover = Recover { epoch, offset: 0, time: None, partial: true };
    assert_eq!(command(text), Command::Subscribe(request("a", Some(recover), 0)));
    let text = r#"{"type":"subscribe","data":{"topic":"a.*","recover":null,"history":null}}"#;
    assert_eq!(command(text), subscribe("a.*"));
    let envelope = r#"{"type":"subscribe","topic":"a","recover":1,"history":"x","topics":5}"#;
    assert_eq!(command(envelope), subscribe("a"), "in the envelope, these keys are ignored");
}

#[test]
fn history_has_a_range_and_an_order() {
    let text = r#"{"type":"history","data":{"topic":"a","from":-10,"limit":1000,"order":"d\u0065sc"}}"#;
    let from = Some(HistoryStart::FromEnd(10));
    let expected =
        HistoryRequest { from, limit: 1000, order: HistoryOrder::Descending, ..history_request("a") };
    assert_eq!(command(text), Command::History(expected));
    let text = r#"{"type":"history","topic":"a","data":{"from":0,"limit":1,"order":null}}"#;
    let expected = HistoryRequest { from: Some(HistoryStart::Offset(0)), limit: 1, ..history_request("a") };
    assert_eq!(command(text), Command::History(expected));
    let longest = r#"{"type":"history","data":{"topic":"a","from":-9223372036854775808}}"#;
    let expected = HistoryRequest { from: Some(HistoryStart::FromEnd(1 << 63)), ..history_request("a") };
    assert_eq!(command(longest), Command::History(expected));
    for (data, code, field) in [
        ("{}", "invalid_message", "topic"),
        ("[]", "invalid_message", "data"),
        (r#"{"topic":"a.*"}"#, "invalid_topic", "topic"),
        (r#"{"topic":"a.*","limit":0}"#, "invalid_message", "limit"),
    ] {
        let text = format!(r#"{{"type":"history","data":{data}}}"#);
        assert_eq!(refused(&text), (code, Some(field), None), "{text}");
    }
}

fn list(text: &str) -> SubscribeList<'_> {
    match command(text) {
        Command::SubscribeList { topics } => topics,
        command => panic!("{text}: {command:?}"),
    }
}

#[test]
fn each_entry_of_a_list_is_judged_for_itself() {
    let text = r#"{"type":"subscribe","id":1,"data":{"topics": [ {"topic":"a"} , {"topic":"b..c","history":1},
        {"history":20,"topic":"\u0063.*","recover":{"epoch":"k3J9aQx2","offset":41}},{"topic":"\ud800"},
        {"topic":"d","recover":{"epoch":1}}, {"topic":"e","history":-1},
        {"topic":"f","history":1,"history":1}, {"topic":"g..","recover":[]} ],"topic":null}}"#;
    let topics = list(text);
    let recover = Recover { epoch: Epoch::parse("k3J9aQx2"), offset: 41, time: None, partial: false };
    let invalid = |field| Err(("invalid_message", field));
    let expected = [
        (r#""a""#, Ok(request("a", None, 0))),
        (r#""b..c""#, Err(("invalid_topic", "topic"))),
        (r#""\u0063.*""#, Ok(request("c.*", Some(recover), 20))),
        (r#""\ud800""#, Err(("invalid_topic", "topic"))),
        (r#""d""#, invalid("epoch")),
        (r#""e""#, invalid("history")),
        (r#""f""#, invalid("history")),
        (r#""g..""#, invalid("recover")),
    ];
    assert_eq!((topics.len(), topics.is_empty()), (expected.len(), false));
    let entries = topics.entries().map(|entry| {
        let request = entry.request.map_err(|error| (error.code.as_str(), error.field.unwrap()));
        (entry.topic.as_str(), request)
    });
    assert_eq!(entries.collect::<Vec<_>>(), expected);
    assert!(list(r#"{"type":"subscribe","data":{"topics":[]}}"#).is_empty());
    assert_eq!(list(r#"{"type":"subscribe","data":{"topics":[],"recover":1}}"#).entries().count(), 0);
}

#[test]
fn an_entry_of_a_list_is_judged_like_a_subscribe_of_its_own() {
    let members = |key: &str| VALUES.iter().map(|value| format!(r#""{key}":{value}"#)).collect::<Vec<_>>();
    let mut entries: Vec<_> = [members("history"), members("recover"), members("other")].concat();
    for key in ["epoch", "offset", "time", "partial"] {
        let others = r#""epoch":"a","offset":1,"#.replace(&format!(r#""{key}":"#), r#""x":"#);
        entries.extend(members(key).iter().map(|member| format!(r#""recover":{{{others}{member}}}"#)));
    }
    for topic in ["a", "a.*", "a..b", r"\ud800"] {
        for entry in &entries {
            let entry = format!(r#"{{{entry},"topic":"{topic}"}}"#);
            let one = format!(r#"{{"type":"subscribe","data":{entry}}}"#);
            let several = format!(r#"{{"type":"subscribe","data":{{"topics":[{{"topic":"x"}},{entry}]}}}}"#);
            let of_list = list(&several).entries().last().unwrap().request;
            match (ClientMessage::parse(&one), of_list) {
                (Ok(message), Ok(request)) => assert_eq!(message.command, Command::Subscribe(request)),
                (one, of_list) => assert_eq!(one.unwrap_err(), of_list.unwrap_err(), "{entry}"),
            }
        }
    }
}

#[test]
fn a_list_of_anything_else_is_rejected_as_a_whole() {
    for topics in [
        "1",
        r#""a""#,
        "{}",
        "true",
        r#"["a"]"#,
        "[[]]",
        "[null]",
        "[{}]",
        r#"[{"topic":1}]"#,
        r#"[{"topic":null}]"#,
        r#"[{"topic":["a"]}]"#,
        r#"[{"topic":"a"},{"Topic":"a"}]"#,
        r#"[{"topic":"a"},{"topic":"a","t\u006fpic":"a"}]"#,
        r#"[{"topic":"a"},7]"#,
    ] {
        let text = format!(r#"{{"id":7,"type":"subscribe","data":{{"topics":{topics}}}}}"#);
        assert_eq!(refused(&text), ("invalid_message", Some("topics"), Some("7")), "{text}");
    }
    for members in [
        r#""data":{"topics":[],"topic":"a"}"#,
        r#""data":{"topics":[],"topic":1}"#,
        r#""data":{"topics":[{"topic":"a"}]},"topic":"a""#,
        r#""data":{"topics":[],"topics":[]}"#,
        r#""data":{"topics":null,"topics":[],"topic":"a"}"#,
    ] {
        let text = format!(r#"{{"id":7,"type":"subscribe",{members}}}"#);
        assert_eq!(refused(&text), ("invalid_message", Some("topics"), Some("7")), "{text}");
    }
    let text = r#"{"type":"subscribe","data":{"topics":null}}"#;
    assert_eq!(refused(text), ("invalid_message", Some("topic"), None));
}

#[test]
fn a_list_nests_within_the_limit_of_the_message() {
    let text = r#"{"type":"subscribe","data":{"topics":[{"topic":"a","recover":{"epoch":"a","offset":1}}]}}"#;
    assert!(ClientMessage::parse_within(text, 5).is_ok());
    let error = ClientMessage::parse_within(text, 4).unwrap_err();
    assert!(error.is_too_deep);
}

/// Returns a strategy for JSON strings of `text`, with some characters escaped.
fn json_string(text: String, escape: bool) -> String {
    if !escape {
        return Value::from(text).to_string();
    }
    let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
    format!("\"{}\"", units.collect::<String>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_encoded_subscribe_parses_to_the_same_value(
        entries in prop::collection::vec(
            ("[a-z]{1,5}(\\.[a-zé]{1,3}){0,2}", prop::option::of(any::<(u64, u64, Option<u64>, bool)>()), any::<u64>(), any::<bool>()),
            1..6,
        ),
        id in any::<u64>(),
    ) {
        let mut encoded = Vec::new();
        let mut expected = Vec::new();
        for (topic, recover, history, escape) in &entries {
            let mut text = format!(r#""history":{history},"topic":{}"#, json_string(topic.clone(), *escape));
            let recover = recover.map(|(bits, offset, time, partial)| {
                let epoch = Epoch::from_bits(bits);
                let time_json = time.map_or("null".to_owned(), |time| time.to_string());
                let epoch_json = json_string(epoch.to_string(), *escape);
                text.push_str(&format!(r#","recover":{{"epoch":{epoch_json},"offset":{offset},"time":{time_json},"partial":{partial}}}"#));
                Recover { epoch: Some(epoch), offset, time, partial }
            });
            expected.push(request(topic, recover, *history));
            encoded.push(format!("{{{text}}}"));
        }
        let one = format!(r#"{{"type":"subscribe","id":{id},"data":{}}}"#, encoded[0]);
        prop_assert_eq!(command(&one), Command::Subscribe(expected[0].clone()));
        let all = format!(r#"{{"data":{{"topics":[{}]}},"type":"subscribe","id":{id}}}"#, encoded.join(" , "));
        let parsed: Result<Vec<_>, _> = list(&all).entries().map(|entry| entry.request).collect();
        prop_assert_eq!(parsed.unwrap(), expected);
    }

    #[test]
    fn an_encoded_publish_and_history_parse_to_the_same_value(
        once in "\\PC{0,16}",
        escape in any::<bool>(),
        number in any::<u64>(),
        limit in 1..=1000u16,
        is_negative in any::<bool>(),
    ) {
        let text = format!(
            r#"{{"type":"publish","data":{{"once":{},"topic":"a","message":0}}}}"#,
            json_string(once.clone(), escape)
        );
        let Command::Publish { once: parsed, .. } = command(&text) else { panic!("it publishes") };
        prop_assert_eq!(parsed.as_deref(), Some(once.as_str()));
        let (from, sign) = if is_negative {
            let number = number % (1 << 63) + 1;
            (HistoryStart::FromEnd(number), format!("-{number}"))
        } else {
            (HistoryStart::Offset(number), number.to_string())
        };
        for order in HistoryOrder::ALL {
            let text = format!(
                r#"{{"type":"history","data":{{"from":{sign},"topic":"a","limit":{limit},"order":"{}"}}}}"#,
                order.as_str()
            );
            let expected = HistoryRequest { from: Some(from), limit, order: *order, ..history_request("a") };
            prop_assert_eq!(command(&text), Command::History(expected));
        }
    }
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
            Command::Subscribe(SubscribeRequest { subscription, recover, history }) => {
                prop_assert_eq!(field("topic"), subscription.as_str());
                prop_assert_eq!(recover.is_some(), !tree["data"]["recover"].is_null());
                prop_assert_eq!(history, tree["data"]["history"].as_u64().unwrap_or(0));
            }
            Command::Unsubscribe { subscription } => prop_assert_eq!(field("topic"), subscription.as_str()),
            Command::SubscribeList { topics } => {
                let list = tree["data"]["topics"].as_array().expect("`topics` is a list");
                prop_assert_eq!(topics.entries().count(), list.len());
                prop_assert_eq!(topics.len(), list.len());
                for (entry, tree) in topics.entries().zip(list) {
                    prop_assert_eq!(&serde_json::from_str::<Value>(entry.topic.as_str())?, &tree["topic"]);
                }
            }
            Command::History(request) => {
                prop_assert_eq!(field("topic"), request.topic.as_str());
                prop_assert_eq!(u64::from(request.limit), tree["data"]["limit"].as_u64().unwrap_or(100));
                let order = tree["data"]["order"].as_str().unwrap_or("asc");
                prop_assert_eq!(request.order.as_str(), order);
                prop_assert_eq!(request.from.is_some(), !tree["data"]["from"].is_null());
            }
            Command::Publish { topic, message, exclude_self, once } => {
                prop_assert_eq!(once.as_deref(), tree["data"]["once"].as_str());
                prop_assert_eq!(field("topic"), topic.as_str());
                prop_assert_eq!(serde_json::from_str::<Value>(message.as_str())?, field("message"));
                prop_assert_eq!(exclude_self, tree["data"]["exclude_self"] == true);
            }
            Command::Authenticate { token } => prop_assert_eq!(&tree["data"]["token"], &*token),
            Command::Ping => {}
        }
    }
}
