//! The JSON messages of a client and of the server.
//!
//! One text message is one JSON object:
//!
//! ```json
//! {"type": "publish", "id": 7, "data": {"topic": "news", "message": {"any": "JSON"}}}
//! ```
//!
//! [`ClientMessage::parse`] reads what a client sent, borrowed from its bytes and in one pass;
//! [`ServerMessage::write_frame`] and [`ServerMessage::to_frame`] write what the server says.
//! Payloads are [`RawJson`](crate::RawJson): their bytes pass through as they came.
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

/// Levels of arrays and objects that a message may have one inside the other at most, its own object
/// among them.
pub const MAX_NESTING: usize = crate::json::MAX_NESTING as usize;
