//! `schema`: machine-readable descriptions of the protocol and the server API.

use clap::ValueEnum;
use deeperhub_protocol::message::Features;
use deeperhub_protocol::schema;

/// A description that the subcommand prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Schema {
    /// The server API, as OpenAPI 3.1
    Openapi,
    /// The WebSocket protocol, as AsyncAPI 3.0
    Asyncapi,
    /// The WebSocket messages, as JSON Schema 2020-12
    Messages,
}

/// The optional features that this server implements.
const FEATURES: Features = Features::HISTORY;

/// Returns the description as indented JSON with a final line feed.
///
/// # Errors
///
/// If the description cannot be serialized, which tests exclude.
pub(crate) fn text(kind: Schema) -> serde_json::Result<String> {
    let mut text = match kind {
        Schema::Openapi => return Ok(deeperhub_api::openapi().to_owned()),
        Schema::Asyncapi => serde_json::to_string_pretty(&schema::asyncapi(FEATURES))?,
        Schema::Messages => serde_json::to_string_pretty(&schema::messages(FEATURES))?,
    };
    text.push('\n');
    Ok(text)
}
