//! WebSocket frames and DeeperHub messages: bytes in, values out; no I/O, no clock, no runtime.
//!
//! A server processes a connection in these steps:
//!
//! 1. [`handshake::Request::parse`] parses the request head. [`handshake::Request::check_upgrade`]
//!    checks that it is a WebSocket upgrade. [`handshake::write_accept`] or
//!    [`handshake::Refusal::write`] writes the response.
//! 2. [`frame::FrameDecoder`] decodes the messages in each read, borrowed from the caller's buffer.
//! 3. [`ClientMessage::parse`] parses a message, borrowed from its text. Payloads are [`RawJson`]:
//!    JSON text whose bytes stay unchanged.
//! 4. [`ServerMessage::write_frame`] writes a reply into a connection's buffer.
//!    [`ServerMessage::to_frame`] encodes a [`frame::Frame`] that many connections share.
//!
//! [`Topic`], [`TopicPattern`] and [`Subscription`] are valid by construction. [`ErrorCode`] and
//! [`CloseCode`] list the codes of error replies and close frames.
//!
//! The feature `deflate` (off by default) adds the module `deflate` for `permessage-deflate` (RFC
//! 7692). The module negotiates, decompresses within bounds, and compresses a shared frame only
//! once. The feature `schema` adds AsyncAPI and JSON Schema documents of the messages.
//!
//! The crate does not handle sockets, time, tokens or origins. It does not implement the client
//! side of the protocol, and it does not execute commands.
//!
//! ```
//! use deeperhub_protocol::frame::{FrameDecoder, FrameLimits, Incoming};
//! use deeperhub_protocol::message::{ClientMessage, Command, ServerMessage};
//!
//! // A masked text frame, as read from a socket.
//! let mut read = *b"\x81\x9a\0\0\0\0{\"type\":\"echo\",\"data\":[1]}";
//! let (mut decoder, limits) = (FrameDecoder::new(), FrameLimits::default());
//! let (mut pos, mut answer) = (0, Vec::new());
//! while let Some(incoming) = decoder.next(&limits, &mut read, &mut pos)? {
//!     let Incoming::Text(text) = incoming else { continue };
//!     match ClientMessage::parse(text) {
//!         Ok(ClientMessage { id, command: Command::Echo { data }, .. }) => {
//!             ServerMessage::Echo { id, data }.write_frame(&mut answer);
//!         }
//!         Ok(_) => {}
//!         Err(error) => error.to_message().write_frame(&mut answer),
//!     }
//! }
//! assert_eq!(answer, b"\x81\x1a{\"type\":\"echo\",\"data\":[1]}");
//! # Ok::<(), deeperhub_protocol::frame::FrameError>(())
//! ```

#[cfg(feature = "deflate")]
pub mod deflate;
pub mod frame;
pub mod handshake;
mod json;
pub mod message;
#[cfg(feature = "schema")]
pub mod schema;

pub use deeperhub_types::{
    ClientId, CloseCode, CloseReason, Epoch, ErrorCode, GapReason, NotRecovered, Position, Subscription,
    Topic, TopicError, TopicPattern, code,
};
pub use json::RawJson;
pub use message::{ClientMessage, MessageError, MessageId, ServerMessage};

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
