//! WebSocket bytes and DeeperHub messages: bytes in, values out; no I/O, no clock, no runtime.
//!
//! What a server does with the bytes of a connection, in their order:
//!
//! 1. [`handshake::Request::parse`] reads the request head, [`handshake::Request::check_upgrade`] decides whether it
//!    asks for a WebSocket, [`handshake::write_accept`] or [`handshake::Refusal::write`] answers.
//! 2. [`frame::FrameDecoder`] finds the messages in what was read, each borrowed from the caller's buffer.
//! 3. [`ClientMessage::parse`] reads a message, borrowed from its text; payloads are [`RawJson`], which keeps their
//!    bytes as they came.
//! 4. [`ServerMessage::write_frame`] writes an answer into a connection's buffer, [`ServerMessage::to_frame`] makes a
//!    [`frame::Frame`] that any number of connections share.
//!
//! [`Topic`], [`TopicPattern`] and [`Subscription`] are valid by construction; [`ErrorCode`] and [`CloseCode`] are the
//! tables of what is said when something is wrong.
//!
//! With the feature `deflate`, off by default, the module `deflate` compresses messages (RFC 7692): it negotiates,
//! decompresses within the limits, and gives shared frames a compressed form that is made once.
//!
//! Absent on purpose: sockets, time, tokens and origins, the client's side of the wire, and any meaning of a message.
//!
//! ```
//! use deeperhub_protocol::frame::{FrameDecoder, FrameLimits, Incoming};
//! use deeperhub_protocol::message::{ClientMessage, Command, ServerMessage};
//!
//! // A masked text frame, as a socket gives it.
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
    ClientId, CloseCode, CloseReason, ErrorCode, Subscription, Topic, TopicError, TopicPattern, code,
};
pub use json::RawJson;
pub use message::{ClientMessage, MessageError, MessageId, ServerMessage};

/// The README's example runs with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
