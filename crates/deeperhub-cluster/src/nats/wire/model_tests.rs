//! Compares the parser with a plain model, for arbitrary operations and splits.

use proptest::collection::vec;
use proptest::prelude::*;

use super::operation::{Operation, Parsed, parse};

/// An operation in words of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Model {
    Info(String),
    Message { subject: String, sid: u64, reply: Option<String>, headers: Option<Vec<u8>>, payload: Vec<u8> },
    Ping,
    Pong,
    Ok,
    Error(String),
}

impl Model {
    fn write(&self) -> Vec<u8> {
        match self {
            Self::Info(text) => format!("INFO {text}\r\n").into(),
            Self::Ping => b"PING\r\n".to_vec(),
            Self::Pong => b"PONG\r\n".to_vec(),
            Self::Ok => b"+OK\r\n".to_vec(),
            Self::Error(text) => format!("-ERR '{text}'\r\n").into(),
            Self::Message { subject, sid, reply, headers, payload } => {
                let verb = if headers.is_some() { "HMSG" } else { "MSG" };
                let reply = reply.as_ref().map_or_else(String::new, |reply| format!("{reply} "));
                let header_len = headers.as_ref().map_or(0, Vec::len);
                let sizes = match headers {
                    Some(_) => format!("{header_len} {}", header_len + payload.len()),
                    None => payload.len().to_string(),
                };
                let line = format!("{verb} {subject} {sid} {reply}{sizes}\r\n");
                [line.as_bytes(), headers.as_deref().unwrap_or_default(), payload, b"\r\n"].concat()
            }
        }
    }
}

fn token() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_$-]{1,9}(\\.[a-z]{1,9}){0,3}"
}

fn model() -> impl Strategy<Value = Model> {
    let headers = proptest::option::of(vec(any::<u8>(), 0..60));
    prop_oneof![
        "\\{[a-z\":,]{0,40}\\}".prop_map(Model::Info),
        Just(Model::Ping),
        Just(Model::Pong),
        Just(Model::Ok),
        "[A-Za-z ]{0,20}[a-z]".prop_map(Model::Error),
        (token(), any::<u32>(), proptest::option::of(token()), headers, vec(any::<u8>(), 0..200)).prop_map(
            |(subject, sid, reply, headers, payload)| Model::Message {
                subject,
                sid: sid.into(),
                reply,
                headers,
                payload,
            }
        ),
    ]
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Compares a parsed operation with its model.
fn is_same(bytes: &[u8], operation: &Operation, model: &Model) -> bool {
    match (operation, model) {
        (Operation::Info(range), Model::Info(expected))
        | (Operation::Error(range), Model::Error(expected)) => text(&bytes[range.clone()]) == *expected,
        (Operation::Ping, Model::Ping) | (Operation::Pong, Model::Pong) | (Operation::Ok, Model::Ok) => true,
        (Operation::Message(message), Model::Message { subject, sid, reply, headers, payload }) => {
            text(&bytes[message.subject.clone()]) == *subject
                && message.sid == *sid
                && text(&bytes[message.reply.clone()]) == *reply.as_deref().unwrap_or_default()
                && bytes[message.headers.clone()] == **headers.as_ref().unwrap_or(&Vec::new())
                && bytes[message.payload.clone()] == **payload
        }
        _ => false,
    }
}

proptest! {
    #[test]
    fn operations_are_found_again_whatever_the_splits(
        models in vec(model(), 1..20), splits in vec(1_usize..80, 1..100),
    ) {
        let all: Vec<u8> = models.iter().flat_map(Model::write).collect();
        let mut splits = splits.into_iter().cycle();
        let (mut arrived, mut at, mut found) = (0, 0, 0);
        while arrived < all.len() {
            arrived = (arrived + splits.next().unwrap()).min(all.len());
            let bytes = &all[..arrived];
            loop {
                match parse(bytes, at) {
                    Ok(Parsed::Whole(operation, end)) => {
                        prop_assert!(is_same(bytes, &operation, &models[found]), "{operation:?}");
                        prop_assert!(end > at && end <= arrived);
                        (at, found) = (end, found + 1);
                    }
                    Ok(Parsed::Partial(needed)) => {
                        // No more is asked for than the operation has.
                        prop_assert!(needed > arrived - at);
                        prop_assert!(found == models.len() || needed <= models[found].write().len());
                        break;
                    }
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
        }
        prop_assert_eq!((at, found), (all.len(), models.len()));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_parsed(bytes in vec(any::<u8>(), 0..300), verb in 0_usize..4) {
        let bytes = [[&b""[..], b"MSG a ", b"HMSG a ", b"-ERR "][verb], &bytes[..]].concat();
        if let Ok(Parsed::Whole(operation, end)) = parse(&bytes, 0) {
            prop_assert!(end <= bytes.len());
            if let Operation::Message(message) = operation {
                prop_assert_eq!(message.headers.end, message.payload.start);
                prop_assert_eq!(message.payload.end + 2, end);
            }
        }
    }
}
