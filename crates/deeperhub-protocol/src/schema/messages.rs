//! The JSON Schema of the messages that clients and the server send, over the protocol's own tables.

use crate::message::{Command, ServerMessage};
use crate::{CloseCode, ErrorCode, Topic};
use serde_json::{Map, Value, json};

/// The name of a client message's definition.
pub(crate) fn client(kind: &str) -> String {
    format!("client.{kind}")
}

/// The name of a server message's definition.
pub(crate) fn server(kind: &str) -> String {
    format!("server.{kind}")
}

/// The whole schema: any message, and by reference to `#/$defs/client` and `#/$defs/server` those of one side.
#[must_use]
pub fn schema() -> Value {
    let reference = |name: String| json!({ "$ref": format!("#/$defs/{name}") });
    let mut definitions = common();
    let of_clients: Vec<Value> = Command::TYPES.iter().map(|kind| reference(client(kind))).collect();
    let mut of_server: Vec<Value> = ServerMessage::TYPES.iter().map(|kind| reference(server(kind))).collect();
    of_server.push(reference(server("raw")));
    for kind in Command::TYPES {
        definitions.insert(client(kind), client_message(kind));
    }
    for kind in ServerMessage::TYPES {
        definitions.insert(server(kind), server_message(kind));
    }
    definitions.insert(server("raw"), raw());
    definitions.insert("client".to_owned(), json!({ "oneOf": of_clients }));
    definitions.insert("server".to_owned(), json!({ "anyOf": of_server }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of deeperhub-ws",
        "description": "One text message is one JSON object. Keys without a meaning are ignored in what clients send, and `null` for one that may be left out counts as absent. Older clients put `topic` and `message` beside `type`; the server takes that as if they stood in `data`.",
        "anyOf": [{ "$ref": "#/$defs/client" }, { "$ref": "#/$defs/server" }],
        "$defs": definitions,
    })
}

/// What messages have in common.
fn common() -> Map<String, Value> {
    let errors: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    let closes: Vec<_> =
        CloseCode::ALL.iter().filter(|code| code.sends_goodbye()).map(|code| code.as_u16()).collect();
    let definitions = json!({
        "id": {
            "description": "Comes back with the reply or the error.",
            "oneOf": [
                { "type": "string", "maxLength": 64 },
                { "type": "integer", "minimum": 0, "maximum": u64::MAX },
            ],
        },
        "topic": {
            "description": "At most 255 bytes of UTF-8; levels between dots, none empty; a leading `$` is the server's.",
            "type": "string",
            "minLength": 1,
            "maxLength": Topic::MAX_BYTES,
            "pattern": "^[^\\s.$][^\\s.]*(\\.[^\\s.]+)*$",
        },
        "subscription": {
            "description": "A topic, or a pattern: `*` stands for one level, a final `>` for one or more.",
            "$ref": "#/$defs/topic",
        },
        "meta": {
            "description": "W3C trace context.",
            "type": "object",
            "properties": { "traceparent": { "type": "string" }, "tracestate": { "type": "string" } },
        },
        "client_id": { "type": "string", "pattern": "^[A-Za-z0-9._-]+$" },
        "error_code": { "enum": errors },
        "goodbye_code": { "enum": closes },
    });
    match definitions {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    }
}

fn client_message(kind: &str) -> Value {
    let (data, required) = match kind {
        "echo" => (json!({ "description": "Any JSON: it comes back as it is." }), true),
        "subscribe" | "unsubscribe" => {
            let properties = json!({ "topic": { "$ref": "#/$defs/subscription" } });
            (json!({ "type": "object", "required": ["topic"], "properties": properties }), true)
        }
        "publish" => {
            let properties = json!({
                "topic": { "$ref": "#/$defs/topic" },
                "message": { "description": "Any JSON." },
                "exclude_self": {
                    "description": "Leaves the publisher's own subscriptions out.",
                    "type": ["boolean", "null"],
                },
            });
            (json!({ "type": "object", "required": ["topic", "message"], "properties": properties }), true)
        }
        "authenticate" => {
            let properties = json!({ "token": { "description": "A JWT.", "type": "string" } });
            (json!({ "type": "object", "required": ["token"], "properties": properties }), true)
        }
        _ => (json!({ "type": "object" }), false),
    };
    let mut keys = vec!["type"];
    keys.extend(required.then_some("data"));
    json!({
        "type": "object",
        "required": keys,
        "properties": {
            "type": { "const": kind },
            "id": { "anyOf": [{ "$ref": "#/$defs/id" }, { "type": "null" }] },
            "data": data,
            "meta": { "anyOf": [{ "$ref": "#/$defs/meta" }, { "type": "null" }] },
        },
    })
}

fn server_message(kind: &str) -> Value {
    let topic = json!({ "$ref": "#/$defs/subscription" });
    let number = json!({ "type": "integer", "minimum": 0 });
    let (required, properties) = match kind {
        "welcome" => (
            &["client_id", "server", "version", "limits"][..],
            json!({
                "client_id": { "$ref": "#/$defs/client_id" },
                "server": { "type": "string" },
                "version": { "type": "string" },
                "limits": {
                    "type": "object",
                    "required": [
                        "max_message_bytes", "max_delivery_bytes", "max_subscriptions", "ping_interval_ms",
                    ],
                    "properties": {
                        "max_message_bytes": number,
                        "max_delivery_bytes": {
                            "description": "The longest message that a client must be able to take.",
                            "type": "integer",
                            "minimum": 0,
                        },
                        "max_subscriptions": number,
                        "ping_interval_ms": number,
                    },
                },
            }),
        ),
        "subscribed" | "unsubscribed" => (&["topic"][..], json!({ "topic": topic })),
        "published" => (
            &["topic", "subscribers"][..],
            json!({ "topic": topic, "subscribers": number, "cluster": { "enum": ["unavailable", "too_large"] } }),
        ),
        "authenticated" => {
            (&["user", "expires_at"][..], json!({ "user": { "type": "string" }, "expires_at": number }))
        }
        "message" => (
            &["topic", "message"][..],
            json!({
                "topic": topic,
                "message": { "description": "As it was published." },
                "from": { "description": "The publisher; absent when a server published.", "$ref": "#/$defs/client_id" },
            }),
        ),
        "goodbye" => (
            &["code", "reason", "reconnect"][..],
            json!({
                "code": { "$ref": "#/$defs/goodbye_code" },
                "reason": { "type": "string" },
                "reconnect": { "type": "boolean" },
                "retry_after_ms": number,
            }),
        ),
        "error" => (
            &["code", "message"][..],
            json!({
                "code": { "$ref": "#/$defs/error_code" },
                "message": { "description": "A sentence for a person.", "type": "string" },
                "field": { "description": "The key at fault.", "type": "string" },
                "topic": { "type": "string" },
                "retry_after_ms": number,
            }),
        ),
        // `echo` carries any JSON, `pong` nothing.
        "echo" => return envelope(kind, Some(json!({ "description": "As it was sent." }))),
        _ => return envelope(kind, None),
    };
    let data = json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false });
    envelope(kind, Some(data))
}

fn envelope(kind: &str, data: Option<Value>) -> Value {
    let mut required = vec!["type"];
    let mut properties = Map::new();
    properties.insert("type".to_owned(), json!({ "const": kind }));
    if matches!(
        kind,
        "echo" | "subscribed" | "unsubscribed" | "published" | "authenticated" | "pong" | "error"
    ) {
        properties.insert("id".to_owned(), json!({ "$ref": "#/$defs/id" }));
    }
    if let Some(data) = data {
        required.push("data");
        properties.insert("data".to_owned(), data);
    }
    if kind == "message" {
        properties.insert("meta".to_owned(), json!({ "$ref": "#/$defs/meta" }));
    }
    json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false })
}

/// What a backend sent: an object of its own.
fn raw() -> Value {
    json!({
        "description": "What a backend sent: an object of its own, passed on as it is.",
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "type": "string" } },
    })
}
