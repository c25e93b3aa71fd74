//! Machine-readable descriptions of the protocol, generated from the tables of this crate.

mod asyncapi;
mod messages;

pub use asyncapi::document as asyncapi;
pub use messages::schema as messages;
