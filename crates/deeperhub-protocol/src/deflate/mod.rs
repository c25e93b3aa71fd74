//! Compression of messages: `permessage-deflate` (RFC 7692), the server's side.
//!
//! - [`negotiate`] chooses from what a client offers; [`Params`] are what was agreed on, and the answer.
//! - [`Inflater`] decompresses the messages that [`FrameDecoder::next_extended`] gives as
//!   [`Extended::Encoded`], within the limit on messages.
//! - [`Frame::for_receiver`] gives a shared frame in the form that a receiver can take, compressed once for all of
//!   them; [`write_text_compressed`] and [`compress_frames`] compress what one connection gets.
//!
//! ```
//! use deeperhub_protocol::deflate::{Config, Deflater, Inflater, negotiate};
//! use deeperhub_protocol::frame::{Extended, Frame, FrameDecoder, FrameLimits, Incoming};
//!
//! // At the handshake; `request.extensions()` gives the lines.
//! let config = Config::default();
//! let params = negotiate(&config, [&b"permessage-deflate; client_max_window_bits"[..]])?;
//! let params = params.expect("the offer is acceptable");
//! assert_eq!(
//!     params.header_value(), // for `write_accept`
//!     "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
//! );
//!
//! // What a client sends: "Hello", compressed, masked with zeros.
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
//! // What many clients get.
//! let mut deflater = Deflater::new(&config); // one for all connections of a thread
//! let frame = Frame::text(&r#"{"type":"message","topic":"sports.football"}"#.repeat(20));
//! let sent = frame.for_receiver(&mut deflater, params);
//! assert!(sent.len() < frame.len() / 10);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is agreed on
//!
//! **`server_no_context_takeover`, always.** Each message of the server is compressed by itself, so that one
//! compressed frame is right for every receiver, and no compressor (370 KiB) belongs to a connection.
//!
//! **`client_no_context_takeover`, unless [`Config::client_context_takeover`] is set.** An [`Inflater`] (46 KiB) then
//! serves all connections of a thread. With takeover it still does: a connection's [`History`] holds the up to 32 KiB
//! that its client may refer to, and nothing else is kept for it.
//!
//! **`server_max_window_bits`, whatever is asked for.** Shared frames are compressed with the largest window. In a
//! message that is no longer than the client's window nothing can refer further back than that; a longer one goes to
//! such a client uncompressed, which is always allowed (RFC 7692 section 6). What one client gets is compressed with its
//! own window, except for one of 8 bits, for which zlib's descendants cannot compress. No client in common use asks
//! for less than 15.
//!
//! **`client_max_window_bits` is never answered.** Messages are decompressed with the largest window.
//!
//! A compressed message is always one frame: Safari fails on compressed messages in several fragments.
//!
//! Compression shows through encryption: the length of a message that holds a secret beside text that an attacker
//! chose says whether they are alike. Since messages share no context, that is so within one message only; do not
//! put the two into one, or switch compression off.
//!
//! # What is refused
//!
//! RSV1 is an error (1002) on control frames and continuations, and on any frame of a connection without agreement,
//! which is decoded with [`FrameDecoder::next`]. A compressed message that DEFLATE cannot read, or that ends inside of
//! a block, closes the connection with 1007; one that holds more than is allowed, with 1009, when so much has come
//! out of it and not more; text that is not UTF-8, with 1007.
//!
//! Blocks with BFINAL set are read, at the end of a message and inside (RFC 7692 section 7.2.3.4), up to 256 in a
//! message. A message that lacks the zero byte behind its last final block, or an empty one that lacks its only byte,
//! is taken all the same, as other servers do.
//!
//! # Figures
//!
//! Best of three interleaved rounds, each a median of nine, on a virtual machine with two cores of an AMD EPYC that
//! had other work too (±10 %); JSON records with ids, names, numbers and times; microseconds for one message by
//! itself, reset included.
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
//! Hence zlib-rs. Level 2: over level 1 it saves another fifth to a quarter of the bytes, for every receiver, and
//! costs 5 to 18 µs, once in a publish (a delivery costs 5 to 6); level 3 then saves 4 to 7 % for 13 to 38 % more time.
//! Level 1 is the better one where most messages have one receiver.
//!
//! Threshold 256: 70 bytes less, for 8 µs and 2 at the receiver, are as much as the packet's own TCP and IP
//! headers. At 128 bytes, 18 are saved, and at 512 half.
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
