//! Compression of messages.

use clap::Args;
use deeperhub_args::whole;

use super::MAX_BYTES;

/// Options under the heading "Compression".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Compression")]
pub(crate) struct CompressionOptions {
    /// Disable compression (`permessage-deflate`), even if clients offer it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub(crate) no_compression: Option<bool>,

    /// Compress messages of at least this many bytes; 0 compresses all
    ///
    /// A message that would not get smaller is sent uncompressed, except with 0.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(0, MAX_BYTES))]
    pub(crate) compression_threshold: Option<usize>,

    /// Compress at this level, from 1 (fastest) to 9 (smallest)
    #[arg(long, value_name = "N", value_parser = whole::<u8>(1, 9))]
    pub(crate) compression_level: Option<u8>,

    /// Let clients keep their compression window between messages
    ///
    /// Their messages get smaller; each connection that uses it costs up to 32 KiB of memory.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub(crate) client_context_takeover: Option<bool>,
}
