//! Compression of messages: `permessage-deflate` (RFC 7692).
mod deflater;
mod header;
mod inflater;
mod negotiation;
#[cfg(test)]
mod tests;

pub use deflater::{Deflater, compress_frames, write_text_compressed};
pub use inflater::{History, Inflater};
pub use negotiation::{Config, Params, negotiate};
