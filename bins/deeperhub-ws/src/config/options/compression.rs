//! Compression of messages.

use clap::Args;
use deeperhub_args::whole;

use super::MAX_BYTES;

/// Options under the heading "Compression".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Compression")]
pub(crate) struct CompressionOptions {
    /// Never compress, whatever clients offer [default: false]
    ///
    /// Otherwise messages from and to clients that offer `permessage-deflate`, as browsers do, are compressed.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub(crate) no_compression: Option<bool>,

    /// Bytes of a message from which on it is compressed; 0 compresses all [default: 256]
    ///
    /// What would not get smaller goes uncompressed in any case, but for 0.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(0, MAX_BYTES))]
    pub(crate) compression_threshold: Option<usize>,

    /// How hard to compress, 1 (fast) to 9 (small) [default: 2]
    #[arg(long, value_name = "N", value_parser = whole::<u8>(1, 9))]
    pub(crate) compression_level: Option<u8>,

    /// Let clients refer to their earlier messages when they compress [default: false]
    ///
    /// What they send gets smaller, and each connection that does so costs up to 32 KiB of memory while it lives.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub(crate) client_context_takeover: Option<bool>,
}
