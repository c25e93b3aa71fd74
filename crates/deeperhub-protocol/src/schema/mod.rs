//! Machine-readable descriptions of the protocol, generated from the tables of this crate.
//!
//! Each document describes a server with the given [`Features`](crate::message::Features). It
//! contains only the messages, keys and codes of these features.

mod asyncapi;
mod messages;
mod streams;
#[cfg(test)]
mod tests;

pub use asyncapi::document as asyncapi;
pub use messages::schema as messages;
