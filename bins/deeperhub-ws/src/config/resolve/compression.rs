//! Resolves the options under "Compression".

use deeperhub_protocol::deflate;

use super::Resolver;
use crate::config::effective::OnReload;
use crate::config::options::CompressionOptions;

/// Resolves `permessage-deflate`.
pub(super) fn resolve(resolver: &mut Resolver, options: CompressionOptions, config: &mut deflate::Config) {
    let CompressionOptions {
        no_compression,
        compression_threshold,
        compression_level,
        client_context_takeover,
    } = options;
    config.enabled = !take!(resolver, fixed no_compression, !config.enabled);
    config.threshold_bytes = take!(resolver, fixed compression_threshold, config.threshold_bytes);
    config.level = take!(resolver, fixed compression_level, config.level);
    config.client_context_takeover =
        take!(resolver, fixed client_context_takeover, config.client_context_takeover);
}
