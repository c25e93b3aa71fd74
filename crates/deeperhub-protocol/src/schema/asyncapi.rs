//! The AsyncAPI document of the WebSocket endpoint. It reuses the definitions of the JSON Schema.

use crate::message::Features;
use serde_json::{Map, Value, json};

use super::messages::{self, client, client_types, server, server_types};

/// Returns the AsyncAPI document from the server's point of view: the server receives the clients'
/// messages. The server has the given features.
#[must_use]
pub fn document(features: Features) -> Value {
    let mut schemas = messages::schema(features);
    let mut schemas = schemas.get_mut("$defs").map(Value::take).unwrap_or_default();
    rewrite_references(&mut schemas);
    let client_messages: Vec<String> = client_types(features).map(client).collect();
    let server_messages: Vec<String> = server_types(features).chain(["raw"]).map(server).collect();

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
    for kind in client_types(features) {
        let replies = [server(reply(kind)), server("error")];
        let operation = json!({
            "action": "receive",
            "channel": hub,
            "messages": channel_references(&[client(kind)]),
            "reply": { "channel": hub, "messages": channel_references(&replies) },
        });
        operations.insert(kind.to_owned(), operation);
    }
    let unsolicited = ["welcome", "message", "gap", "position", "unsubscribed", "goodbye", "raw"];
    let unsolicited: Vec<String> = unsolicited
        .into_iter()
        .filter(|kind| *kind == "raw" || server_types(features).any(|offered| offered == *kind))
        .map(server)
        .collect();
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
        "history" => "history",
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
