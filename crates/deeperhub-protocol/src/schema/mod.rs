//! Machine-readable descriptions of the protocol, generated from its own tables.

mod asyncapi;
mod messages;

pub use asyncapi::document as asyncapi;
pub use messages::schema as messages;
