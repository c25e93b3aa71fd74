//! RFC 6455 frames: an incremental decoder for client frames, and shared server frames.
//!
//! - [`FrameDecoder`] decodes the messages in the bytes read from one connection. It unmasks in
//!   place and borrows messages from the caller's buffer. Only incomplete messages are copied.
//! - [`Frame`] is a server frame, encoded once and sent to many connections. The `write_…`
//!   functions append a frame for one connection to its buffer.
//! - [`KeptFrame`] is the handle of a history on a frame.
//! - [`Unsealed`] is a delivery without its position, which [`Unsealed::seal`] adds.
//!
//! ```
//! use deeperhub_protocol::frame::{FrameDecoder, FrameLimits, Incoming, write_text};
//!
//! // Bytes read from a socket: one masked text frame.
//! let mut input = *b"\x81\x82\x01\x02\x03\x04ik";
//! let (mut decoder, limits) = (FrameDecoder::new(), FrameLimits::default());
//! let (mut pos, mut answer) = (0, Vec::new());
//! while let Some(incoming) = decoder.next(&limits, &mut input, &mut pos)? {
//!     if let Incoming::Text(text) = incoming {
//!         write_text(&mut answer, text);
//!     }
//! }
//! assert_eq!(answer, b"\x81\x02hi");
//! # Ok::<(), deeperhub_protocol::frame::FrameError>(())
//! ```

mod assembly;
mod decoder;
mod encode;
mod error;
mod header;
mod incoming;
mod kept;
mod mask;
mod seal;
mod shared;
#[cfg(test)]
mod tests;
mod utf8;

pub use decoder::{FrameDecoder, FrameLimits};
pub(crate) use encode::{header_len, text_header, text_payload};
#[cfg(feature = "deflate")]
pub(crate) use encode::{rsv1_header, server_frame, write_rsv1};
pub use encode::{write_binary, write_close, write_ping, write_pong, write_text, write_text_with};
pub use error::FrameError;
#[cfg(feature = "deflate")]
pub(crate) use header::TEXT;
pub use incoming::{Extended, Incoming, MessageKind};
pub use kept::KeptFrame;
pub use seal::Unsealed;
pub use shared::Frame;
