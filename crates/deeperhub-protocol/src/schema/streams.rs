//! Definitions of messages and keys for topics with history.

use crate::message::{Command, Features, HistoryOrder, HistoryRequest, Recover};
use crate::{Epoch, ErrorCode, GapReason, NotRecovered};
use serde_json::{Map, Value, json};

/// Returns the definitions shared by messages of topics with history.
pub(super) fn definitions() -> Map<String, Value> {
    let mut single = json!({
        "type": "object",
        "required": ["topic"],
        "properties": {
            "topic": reference("subscription"),
            "recovered": {
                "description": "Whether deliveries continue after `recover`; absent without `recover`.",
                "type": "boolean",
            },
            "reason": {
                "description": "The reason if `recovered` is `false`.",
                "enum": NotRecovered::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>(),
            },
            "replay": {
                "description": "Number of kept messages that come before live messages.",
                "type": "integer",
                "minimum": 0,
            },
        },
        "dependentRequired": position_dependencies(),
        "additionalProperties": false,
    });
    insert_position(&mut single["properties"]);
    let mut delivery = json!({
        "type": "object",
        "required": ["topic", "message", "time", "epoch", "offset"],
        "properties": {
            "topic": reference("topic"),
            "message": { "description": "The payload as published." },
            "from": reference("client_id"),
            "prev": prev(),
        },
        "additionalProperties": false,
    });
    insert_position(&mut delivery["properties"]);
    let definitions = json!({
        "unsigned": { "type": "integer", "minimum": 0, "maximum": u64::MAX },
        "epoch": {
            "description": "The identity of a topic's stream. Offsets of different epochs are unrelated.",
            "type": "string",
            "minLength": Epoch::BYTES,
            "maxLength": Epoch::BYTES,
            "pattern": "^[0-9A-Za-z]+$",
        },
        "recover": {
            "description": "A position that the server sent, unchanged.",
            "type": "object",
            "required": ["epoch", "offset"],
            "properties": {
                "epoch": { "type": "string", "minLength": 1, "maxLength": Recover::MAX_EPOCH_BYTES },
                "offset": reference("unsigned"),
                "time": or_null(reference("unsigned")),
                "partial": {
                    "description": "If recovery fails, asks for all messages that are kept.",
                    "type": ["boolean", "null"],
                },
            },
        },
        "subscribe_request": {
            "type": "object",
            "required": ["topic"],
            "properties": {
                "topic": reference("subscription"),
                "recover": or_null(reference("recover")),
                "history": or_null(json!({
                    "description": "Number of kept messages to deliver first, without `recover` or if it fails.",
                    "$ref": "#/$defs/unsigned",
                })),
            },
        },
        "subscribed_entry": single,
        "delivery": delivery,
    });
    match definitions {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    }
}

/// Returns the definition of `data` of `subscribe`.
pub(super) fn subscribe() -> Value {
    let list = json!({
        "type": "object",
        "required": ["topics"],
        "properties": {
            "topic": { "type": "null" },
            "topics": { "type": "array", "items": reference("subscribe_request") },
        },
    });
    let single = json!({
        "$ref": "#/$defs/subscribe_request",
        "properties": { "topics": { "type": "null" } },
    });
    json!({ "anyOf": [single, list] })
}

/// Returns the definition of `once` of `publish`.
pub(super) fn once() -> Value {
    json!({
        "description": "A topic with history stores the messages of a user with the same text once.",
        "type": ["string", "null"],
        "maxLength": Command::MAX_ONCE_BYTES,
    })
}

/// Returns the definition of `data` of the client message `history`.
pub(super) fn history_request() -> Value {
    let orders: Vec<_> =
        HistoryOrder::ALL.iter().map(|order| json!(order.as_str())).chain([Value::Null]).collect();
    json!({
        "type": "object",
        "required": ["topic"],
        "properties": {
            "topic": reference("topic"),
            "from": {
                "description": "The first offset, or a negative number to count from the end.",
                "type": ["integer", "null"],
                "minimum": i64::MIN,
                "maximum": u64::MAX,
            },
            "limit": {
                "type": ["integer", "null"],
                "minimum": 1,
                "maximum": HistoryRequest::MAX_LIMIT,
                "default": HistoryRequest::DEFAULT_LIMIT,
            },
            "order": { "enum": orders },
        },
    })
}

/// Returns the definition of `data` of `subscribed`.
pub(super) fn subscribed() -> Value {
    let error = json!({
        "type": "object",
        "required": ["topic", "error"],
        "properties": {
            "topic": { "description": "The topic as received.", "type": "string" },
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": reference("error_code"),
                    "message": { "description": "Description for people.", "type": "string" },
                    "field": { "description": "The key that caused the error.", "type": "string" },
                    "retry_after_ms": reference("unsigned"),
                },
                "additionalProperties": false,
            },
        },
        "additionalProperties": false,
    });
    let entry = json!({ "oneOf": [reference("subscribed_entry"), error] });
    let list = json!({
        "type": "object",
        "required": ["topics"],
        "properties": { "topics": { "type": "array", "items": entry } },
        "additionalProperties": false,
    });
    json!({ "oneOf": [reference("subscribed_entry"), list] })
}

/// Adds the keys of topics with history to a message that also exists without them.
pub(super) fn extend(
    kind: &str,
    features: Features,
    required: &mut Vec<&'static str>,
    properties: &mut Value,
) {
    match kind {
        "welcome" => {
            required.extend(["features", "server_time"]);
            properties["features"] = json!({
                "description": "The optional features that are switched on.",
                "type": "array",
                "items": { "enum": features.names().collect::<Vec<_>>() },
            });
            properties["server_time"] = json!({
                "description": "Milliseconds since the Unix epoch.",
                "$ref": "#/$defs/unsigned",
            });
        }
        "published" => insert_position(properties),
        "message" => {
            insert_position(properties);
            properties["prev"] = prev();
        }
        _ => {}
    }
}

/// Returns the definition of `data` of a message that only topics with history have.
pub(super) fn server_data(kind: &str) -> Value {
    let (required, mut properties) = match kind {
        "gap" => (
            &["topic", "time", "epoch", "offset", "reason"][..],
            json!({
                "from": { "description": "The first missing offset; absent for a new epoch.", "$ref": "#/$defs/unsigned" },
                "to": { "description": "The last missing offset; absent for a new epoch.", "$ref": "#/$defs/unsigned" },
                "reason": { "enum": GapReason::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>() },
            }),
        ),
        "history" => (
            &["topic", "messages"][..],
            json!({
                "messages": { "type": "array", "items": reference("delivery") },
                "next": { "description": "The offset to continue from; absent at the end.", "$ref": "#/$defs/unsigned" },
            }),
        ),
        _ => (&["topic", "time", "epoch", "offset"][..], json!({})),
    };
    properties["topic"] = reference("topic");
    insert_position(&mut properties);
    let mut dependencies = position_dependencies();
    if kind == "gap" {
        dependencies["from"] = json!(["to"]);
        dependencies["to"] = json!(["from"]);
    }
    json!({
        "type": "object",
        "required": required,
        "properties": properties,
        "dependentRequired": dependencies,
        "additionalProperties": false,
    })
}

/// Returns the rule that a position is complete.
pub(super) fn position_dependencies() -> Value {
    json!({ "epoch": ["offset", "time"], "offset": ["epoch", "time"], "time": ["epoch", "offset"] })
}

fn insert_position(properties: &mut Value) {
    properties["time"] = json!({
        "description": "Milliseconds since the Unix epoch.",
        "$ref": "#/$defs/unsigned",
    });
    properties["epoch"] = reference("epoch");
    properties["offset"] = reference("unsigned");
}

fn prev() -> Value {
    json!({
        "description": "The offset of the previous message; absent if it is the offset before this one.",
        "$ref": "#/$defs/unsigned",
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

fn or_null(definition: Value) -> Value {
    json!({ "anyOf": [definition, { "type": "null" }] })
}

/// Codes that only topics with history have.
pub(super) const fn needs_history(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::TooManyTopics | ErrorCode::Unavailable)
}
