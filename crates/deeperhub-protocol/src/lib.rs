//! WebSocket bytes and DeeperHub messages: bytes in, values out; no I/O, no clock, no runtime.

pub mod code;
pub mod frame;
pub mod handshake;
mod id;
mod json;
pub mod message;
mod topic;

pub use code::{CloseCode, CloseReason, ErrorCode};
pub use id::ClientId;
pub use json::RawJson;
pub use message::{ClientMessage, MessageError, MessageId, ServerMessage};
pub use topic::{Subscription, Topic, TopicError, TopicPattern};
