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
//!
//! Messages of topics with history carry a [`Position`](crate::Position). A server gives an offset
//! under a lock. [`StreamMessage::encode`] therefore encodes a delivery before the lock, and
//! [`Unsealed::seal`](crate::frame::Unsealed::seal) adds the position. [`EncodedDelivery`] reads a
//! delivery from its bytes.

mod client;
mod delivery;
mod delivery_encoder;
mod envelope;
mod error;
mod features;
mod history;
mod id;
mod server;
mod sink;
mod span;
mod stream_message;
mod subscribe;
mod subscribed;
mod trace;

pub use client::{ClientMessage, Command};
pub use delivery::EncodedDelivery;
pub use delivery_encoder::DeliveryEncoder;
pub use error::MessageError;
pub use features::Features;
pub use history::{HistoryOrder, HistoryRequest, HistoryStart};
pub use id::MessageId;
pub use server::{
    ClusterFault, ServerMessage, WelcomeLimits, check_server_object, check_server_object_within,
};
pub use span::SpanContext;
pub use stream_message::StreamMessage;
pub use subscribe::{Recover, SubscribeList, SubscribeListEntries, SubscribeListEntry, SubscribeRequest};
pub use subscribed::{SubscribedEntry, SubscribedError, SubscriptionStart};
pub use trace::TraceContext;

/// Maximum nesting of arrays and objects in a message. The message's own object is the first level.
pub const MAX_NESTING: usize = crate::json::MAX_NESTING as usize;
