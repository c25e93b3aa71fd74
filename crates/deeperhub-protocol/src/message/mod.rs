//! The JSON messages of clients and of the server.
//!
//! One text message is one JSON object:
//!
//! ```json
//! {"type": "publish", "id": 7, "data": {"topic": "news", "message": {"any": "JSON"}}}
//! ```
//!
//! [`ClientMessage::parse`] parses a client message in one pass and borrows from its text.
//! [`ServerMessage::write_frame`] and [`ServerMessage::to_frame`] encode server messages. Payloads
//! are [`RawJson`](crate::RawJson): their bytes pass through unchanged.
//!
//! ```
//! use deeperhub_protocol::message::{ClientMessage, Command, ServerMessage};
//!
//! let message = ClientMessage::parse(r#"{"type":"echo","id":"a","data":{"n":1.0}}"#)?;
//! let Command::Echo { data } = message.command else { unreachable!("its type is echo") };
//! let mut out = Vec::new();
//! ServerMessage::Echo { id: message.id, data }.write_frame(&mut out);
//! assert_eq!(&out[2..], br#"{"type":"echo","id":"a","data":{"n":1.0}}"#);
//! # Ok::<(), deeperhub_protocol::MessageError<'_>>(())
//! ```

mod client;
mod envelope;
mod error;
mod id;
mod server;
mod sink;
mod span;
mod trace;

pub use client::{ClientMessage, Command};
pub use error::MessageError;
pub use id::MessageId;
pub use server::{
    ClusterFault, ServerMessage, WelcomeLimits, check_server_object, check_server_object_within,
};
pub use span::SpanContext;
pub use trace::TraceContext;

/// Maximum nesting of arrays and objects in a message. The message's own object is the first level.
pub const MAX_NESTING: usize = crate::json::MAX_NESTING as usize;
