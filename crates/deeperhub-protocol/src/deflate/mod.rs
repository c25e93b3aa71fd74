//! The server side of `permessage-deflate` (RFC 7692), message compression.
//!
//! - [`negotiate`] selects one of a client's offers; [`Params`] holds the negotiated parameters.
//! - [`Inflater`] decompresses messages that [`FrameDecoder::next_extended`] returns as
//!   [`Extended::Encoded`], within the message size limit.
//! - [`Frame::for_receiver`] returns the compressed form of a shared frame if the receiver supports
//!   it. The frame is compressed once for all receivers.
//! - [`write_text_compressed`] and [`compress_frames`] compress messages for one connection.
//!
//! ```
//! use deeperhub_protocol::deflate::{Config, Deflater, Inflater, negotiate};
//! use deeperhub_protocol::frame::{Extended, Frame, FrameDecoder, FrameLimits, Incoming};
//!
//! // At the handshake. In a server, `request.extensions()` returns the header lines.
//! let config = Config::default();
//! let params = negotiate(&config, [&b"permessage-deflate; client_max_window_bits"[..]])?;
//! let params = params.expect("the offer is acceptable");
//! assert_eq!(
//!     params.header_value(), // for `write_accept`
//!     "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
//! );
//!
//! // A client's message: "Hello", compressed, masked with zeros.
//! let (mut decoder, limits) = (FrameDecoder::new(), FrameLimits::default());
//! let mut inflater = Inflater::new(); // one for all connections of a thread
//! let mut read = *b"\xc1\x87\0\0\0\0\xf2\x48\xcd\xc9\xc9\x07\x00";
//! let mut pos = 0;
//! while let Some(extended) = decoder.next_extended(&limits, &mut read, &mut pos)? {
//!     let incoming = match extended {
//!         Extended::Plain(incoming) => incoming,
//!         Extended::Encoded { kind, payload } => {
//!             inflater.decode(None, limits.max_message_bytes, kind, payload)?
//!         }
//!     };
//!     assert_eq!(incoming, Incoming::Text("Hello"));
//! }
//!
//! // A frame for many clients.
//! let mut deflater = Deflater::new(&config); // one for all connections of a thread
//! let frame = Frame::text(&r#"{"type":"message","topic":"sports.football"}"#.repeat(20));
//! let sent = frame.for_receiver(&mut deflater, params);
//! assert!(sent.len() < frame.len() / 10);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Negotiated parameters
//!
//! **`server_no_context_takeover`: always.** Each server message is compressed separately. One
//! compressed frame therefore serves every receiver, and no connection needs a compressor (370
//! KiB).
//!
//! **`client_no_context_takeover`: unless [`Config::client_context_takeover`] is set.** One
//! [`Inflater`] (46 KiB) serves all connections of a thread, with and without context takeover. A
//! connection with context takeover also has a [`History`]: the last 32 KiB to which its client may
//! refer.
//!
//! **`server_max_window_bits`: any value is accepted.** Shared frames are compressed with the
//! largest window. A message that fits the client's window cannot contain a reference beyond that
//! window. A longer shared frame is sent to such a client uncompressed, which is always allowed
//! (RFC 7692 section 6). A longer message for one client is compressed with that client's window.
//! If that window has 8 bits, the message stays uncompressed, because zlib and its descendants do
//! not support 8 bits. No common client requests less than 15 bits.
//!
//! **`client_max_window_bits`: never sent.** Messages are decompressed with the largest window.
//!
//! A compressed message is always one frame, since Safari fails on fragmented compressed messages.
//!
//! Compression leaks through encryption: if a message contains a secret and text chosen by an
//! attacker, the message's length reveals whether the two are similar. Messages share no context,
//! so the leak is limited to one message. Do not put a secret and foreign text into one message, or
//! disable compression.
//!
//! # Errors
//!
//! RSV1 is an error (1002) on control frames, on continuations, and on any frame of a connection
//! without a negotiated extension ([`FrameDecoder::next`]). Three kinds of messages close the
//! connection:
//!
//! - a message that is not valid DEFLATE or ends inside a block, with 1007;
//! - text that is not UTF-8, with 1007;
//! - a message over the size limit, with 1009 as soon as the decompressed bytes exceed the limit.
//!
//! Final blocks (BFINAL set) are accepted at the end of a message and inside it (RFC 7692 section
//! 7.2.3.4), up to 256 per message. Like other servers, the inflater tolerates a missing zero byte
//! after the last final block, and an empty message without its only byte.
//!
//! # Figures
//!
//! Best of three interleaved rounds, each the median of nine runs, on a two-core AMD EPYC virtual
//! machine with other load (±10 %). JSON records with IDs, names, numbers and times. Times are in
//! microseconds per message, including the stream reset. "Bytes left" is the compressed size.
//!
//! | payload | zlib-rs, level 1 | 2 | 3 | 6 | miniz_oxide, level 1 | 3 | 6 |
//! |---|---|---|---|---|---|---|---|
//! | 128 B, compress | 2.5 | 6.4 | 6.4 | 6.4 | 14.7 | 14.9 | 14.9 |
//! | decompress | 0.5 | 1.3 | 1.3 | 1.3 | 3.7 | 3.4 | 3.3 |
//! | bytes left | 122 | 110 | 110 | 110 | 111 | 111 | 110 |
//! | 256 B, compress | 3.2 | 8.0 | 8.6 | 8.9 | 14.8 | 16.2 | 16.3 |
//! | decompress | 0.8 | 1.9 | 1.8 | 1.7 | 3.7 | 3.7 | 3.7 |
//! | bytes left | 229 | 186 | 186 | 186 | 192 | 189 | 187 |
//! | 2 KiB, compress | 4.9 | 12.3 | 13.9 | 15.2 | 19.0 | 24.0 | 25.0 |
//! | decompress | 2.0 | 3.4 | 3.3 | 3.1 | 7.2 | 5.5 | 5.2 |
//! | bytes left | 753 | 597 | 572 | 553 | 648 | 583 | 549 |
//! | 16 KiB, compress | 19.5 | 37.5 | 51.7 | 85.4 | 43.6 | 81.9 | 182.8 |
//! | decompress | 11.2 | 12.8 | 12.2 | 11.1 | 18.2 | 15.7 | 13.7 |
//! | bytes left | 4274 | 3180 | 2966 | 2720 | 3603 | 2964 | 2635 |
//!
//! The default is therefore zlib-rs at level 2. Compared to level 1, level 2 saves another fifth to
//! a quarter of the bytes for every receiver. It costs 5 to 18 µs more, once per publish; a
//! delivery costs 5 to 6 µs. Level 3 saves another 4 to 7 % for 13 to 38 % more time. Level 1 is
//! better if most messages have one receiver.
//!
//! The default threshold is 256 bytes. Compressing a message of this size saves 70 bytes, about the
//! size of a packet's TCP and IP headers. It costs 8 µs at the server and 2 µs at the receiver. At
//! 128 bytes, compression saves 18 bytes; at 512 bytes, it saves half.
//!
//! [`FrameDecoder::next_extended`]: crate::frame::FrameDecoder::next_extended
//! [`FrameDecoder::next`]: crate::frame::FrameDecoder::next
//! [`Extended::Encoded`]: crate::frame::Extended::Encoded
//! [`Frame::for_receiver`]: crate::frame::Frame::for_receiver

mod deflater;
mod header;
mod inflater;
mod negotiation;
#[cfg(test)]
mod tests;

pub use deflater::{Deflater, compress_frames, write_text_compressed};
pub use inflater::{History, Inflater};
pub use negotiation::{Config, Params, negotiate};
