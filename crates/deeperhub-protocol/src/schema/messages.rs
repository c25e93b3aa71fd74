//! The JSON Schema of client and server messages, generated from the protocol's tables.

use crate::message::{ClusterFault, Command, Features, MessageId, ServerMessage};
use crate::{CloseCode, ErrorCode, Topic};
use serde_json::{Map, Value, json};

use super::streams;

/// Returns the definition name of a client message.
pub(crate) fn client(kind: &str) -> String {
    format!("client.{kind}")
}

/// Returns the definition name of a server message.
pub(crate) fn server(kind: &str) -> String {
    format!("server.{kind}")
}

/// Returns the types of client messages that a server with the given features accepts.
pub(crate) fn client_types(features: Features) -> impl Iterator<Item = &'static str> {
    let needs_history = |kind: &str| kind == "history";
    Command::TYPES.iter().copied().filter(move |kind| has_history(features) || !needs_history(kind))
}

/// Returns the types of messages that a server with the given features sends.
pub(crate) fn server_types(features: Features) -> impl Iterator<Item = &'static str> {
    let needs_history = |kind: &str| matches!(kind, "gap" | "position" | "history");
    ServerMessage::TYPES.iter().copied().filter(move |kind| has_history(features) || !needs_history(kind))
}

pub(super) const fn has_history(features: Features) -> bool {
    features.contains(Features::HISTORY)
}

/// Returns the schema of all messages of a server with the given features. `#/$defs/client`
/// describes the messages of clients, and `#/$defs/server` those of the server.
#[must_use]
pub fn schema(features: Features) -> Value {
    let reference = |name: String| json!({ "$ref": format!("#/$defs/{name}") });
    let mut definitions = common(features);
    let client_messages: Vec<Value> = client_types(features).map(|kind| reference(client(kind))).collect();
    let mut server_messages: Vec<Value> =
        server_types(features).map(|kind| reference(server(kind))).collect();
    server_messages.push(reference(server("raw")));
    for kind in client_types(features) {
        definitions.insert(client(kind), client_message(kind, features));
    }
    for kind in server_types(features) {
        definitions.insert(server(kind), server_message(kind, features));
    }
    definitions.insert(server("raw"), raw());
    definitions.insert("client".to_owned(), json!({ "oneOf": client_messages }));
    definitions.insert("server".to_owned(), json!({ "anyOf": server_messages }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of deeperhub-ws",
        "description": "One text message is one JSON object. The server ignores unknown keys in client messages, and `null` for an optional key counts as absent. For older clients, the server also accepts `topic` and `message` beside `type` instead of in `data`.",
        "anyOf": [{ "$ref": "#/$defs/client" }, { "$ref": "#/$defs/server" }],
        "$defs": definitions,
    })
}

/// Returns the definitions shared by all messages.
fn common(features: Features) -> Map<String, Value> {
    let errors =
        ErrorCode::ALL.iter().filter(|code| has_history(features) || !streams::needs_history(**code));
    let errors: Vec<_> = errors.map(|code| code.as_str()).collect();
    let closes: Vec<_> =
        CloseCode::ALL.iter().filter(|code| code.sends_goodbye()).map(|code| code.as_u16()).collect();
    let definitions = json!({
        "id": {
            "description": "Echoed in the reply or error.",
            "oneOf": [
                { "type": "string", "maxLength": MessageId::MAX_BYTES },
                { "type": "integer", "minimum": 0, "maximum": u64::MAX },
            ],
        },
        "topic": {
            "description": "At most 255 bytes of UTF-8. Dots separate levels, and no level is empty. Topics that start with `$` are reserved.",
            "type": "string",
            "minLength": 1,
            "maxLength": Topic::MAX_BYTES,
            "pattern": "^[^\\s.$][^\\s.]*(\\.[^\\s.]+)*$",
        },
        "subscription": {
            "description": "A topic, or a pattern: `*` matches one level, a final `>` matches one or more.",
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
    let mut definitions = match definitions {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    };
    if has_history(features) {
        definitions.extend(streams::definitions());
    }
    definitions
}

/// Returns the definition of a client message.
fn client_message(kind: &str, features: Features) -> Value {
    let (data, required) = match kind {
        "echo" => (json!({ "description": "Any JSON, returned unchanged." }), true),
        "subscribe" if has_history(features) => (streams::subscribe(), true),
        "history" => (streams::history_request(), true),
        "subscribe" | "unsubscribe" => {
            let properties = json!({ "topic": { "$ref": "#/$defs/subscription" } });
            (json!({ "type": "object", "required": ["topic"], "properties": properties }), true)
        }
        "publish" => {
            let mut properties = json!({
                "topic": { "$ref": "#/$defs/topic" },
                "message": { "description": "Any JSON." },
                "exclude_self": {
                    "description": "Excludes the publisher's own subscriptions.",
                    "type": ["boolean", "null"],
                },
            });
            if has_history(features) {
                properties["once"] = streams::once();
            }
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

/// Returns the definition of a server message.
fn server_message(kind: &str, features: Features) -> Value {
    let topic = json!({ "$ref": "#/$defs/subscription" });
    let number = json!({ "type": "integer", "minimum": 0 });
    let (mut required, mut properties) = match kind {
        "welcome" => (
            vec!["client_id", "server", "version", "limits"],
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
                            "description": "Maximum length of a message that a client must be able to receive.",
                            "type": "integer",
                            "minimum": 0,
                        },
                        "max_subscriptions": number,
                        "ping_interval_ms": number,
                    },
                },
            }),
        ),
        "subscribed" | "unsubscribed" => (vec!["topic"], json!({ "topic": topic })),
        "published" => (
            vec!["topic", "subscribers"],
            json!({ "topic": topic, "subscribers": number, "cluster": { "enum": [ClusterFault::Unavailable.as_str(), ClusterFault::TooLarge.as_str()] } }),
        ),
        "authenticated" => {
            (vec!["user", "expires_at"], json!({ "user": { "type": "string" }, "expires_at": number }))
        }
        "message" => (
            vec!["topic", "message"],
            json!({
                "topic": topic,
                "message": { "description": "The payload as published." },
                "from": { "description": "The publisher; absent if a backend published.", "$ref": "#/$defs/client_id" },
            }),
        ),
        "gap" | "position" | "history" => return envelope(kind, Some(streams::server_data(kind))),
        "goodbye" => (
            vec!["code", "reason", "reconnect"],
            json!({
                "code": { "$ref": "#/$defs/goodbye_code" },
                "reason": { "type": "string" },
                "reconnect": { "type": "boolean" },
                "retry_after_ms": number,
            }),
        ),
        "error" => (
            vec!["code", "message"],
            json!({
                "code": { "$ref": "#/$defs/error_code" },
                "message": { "description": "Description for people.", "type": "string" },
                "field": { "description": "The key that caused the error.", "type": "string" },
                "topic": { "type": "string" },
                "retry_after_ms": number,
            }),
        ),
        // The data of `echo` is any JSON; `pong` has no data.
        "echo" => return envelope(kind, Some(json!({ "description": "The payload as sent." }))),
        _ => return envelope(kind, None),
    };
    if has_history(features) {
        if kind == "subscribed" {
            return envelope(kind, Some(streams::subscribed()));
        }
        streams::extend(kind, features, &mut required, &mut properties);
    }
    let mut data = json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false });
    if has_history(features) && matches!(kind, "message" | "published") {
        data["dependentRequired"] = streams::position_dependencies();
    }
    envelope(kind, Some(data))
}

/// Returns the definition of a server message with the given definition of `data`.
fn envelope(kind: &str, data: Option<Value>) -> Value {
    let mut required = vec!["type"];
    let mut properties = Map::new();
    properties.insert("type".to_owned(), json!({ "const": kind }));
    if matches!(
        kind,
        "echo" | "subscribed" | "unsubscribed" | "published" | "authenticated" | "pong" | "history" | "error"
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

/// Returns the definition of a message from a backend.
fn raw() -> Value {
    json!({
        "description": "A message from a backend, passed on unchanged.",
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "type": "string" } },
    })
}
