//! The AsyncAPI document of the WebSocket endpoint. It reuses the definitions of the JSON Schema.

use crate::message::{Command, ServerMessage};
use serde_json::{Map, Value, json};

use super::messages::{self, client, server};

/// Returns the AsyncAPI document from the server's point of view: the server receives the clients'
/// messages.
#[must_use]
pub fn document() -> Value {
    let mut schemas = messages::schema();
    let mut schemas = schemas.get_mut("$defs").map(Value::take).unwrap_or_default();
    rewrite_references(&mut schemas);
    let client_messages: Vec<String> = Command::TYPES.iter().map(|kind| client(kind)).collect();
    let server_messages: Vec<String> =
        ServerMessage::TYPES.iter().chain(&["raw"]).map(|kind| server(kind)).collect();

    let (mut components, mut channel) = (Map::new(), Map::new());
    for name in client_messages.iter().chain(&server_messages) {
        let payload = json!({ "$ref": format!("#/components/schemas/{name}") });
        let message = json!({ "name": name, "contentType": "application/json", "payload": payload });
        components.insert(name.clone(), message);
        channel.insert(name.clone(), json!({ "$ref": format!("#/components/messages/{name}") }));
    }
    let channel_references = |names: &[String]| -> Vec<Value> {
        names.iter().map(|name| json!({ "$ref": format!("#/channels/hub/messages/{name}") })).collect()
    };
    let hub = json!({ "$ref": "#/channels/hub" });
    let mut operations = Map::new();
    for kind in Command::TYPES {
        let replies = [server(reply(kind)), server("error")];
        let operation = json!({
            "action": "receive",
            "channel": hub,
            "messages": channel_references(&[client(kind)]),
            "reply": { "channel": hub, "messages": channel_references(&replies) },
        });
        operations.insert((*kind).to_owned(), operation);
    }
    let unsolicited: Vec<String> =
        ["welcome", "message", "unsubscribed", "goodbye", "raw"].iter().map(|kind| server(kind)).collect();
    operations.insert(
        "deliver".to_owned(),
        json!({ "action": "send", "channel": hub, "messages": channel_references(&unsolicited) }),
    );
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "deeperhub-ws",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A realtime WebSocket hub. Subprotocol `deeperhub.v1.json`, also without one.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": { "host": "localhost:8080", "protocol": "ws" },
            "secure": { "host": "localhost:8080", "protocol": "wss", "description": "With --tls-cert" },
        },
        "channels": {
            "hub": {
                "address": "/",
                "description": "Also `/ws`; --path replaces both.",
                "messages": channel,
            },
        },
        "operations": operations,
        "components": { "messages": components, "schemas": schemas },
    })
}

/// Returns the type of the reply to a client message.
fn reply(kind: &str) -> &'static str {
    match kind {
        "subscribe" => "subscribed",
        "unsubscribe" => "unsubscribed",
        "publish" => "published",
        "authenticate" => "authenticated",
        "ping" => "pong",
        _ => "echo",
    }
}

/// Rewrites references from the JSON Schema's location of definitions to that of this document.
fn rewrite_references(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(text) if key == "$ref" => {
                        *text = text.replace("#/$defs/", "#/components/schemas/");
                    }
                    other => rewrite_references(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite_references),
        _ => {}
    }
}
