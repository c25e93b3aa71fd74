//! Buffers that all connections of a worker share.

use crate::arena::Arena;
use crate::transport::TlsScratch;

/// Maximum capacity that the gather buffer keeps between rounds. A larger buffer is freed.
const MAX_KEPT_GATHER_BYTES: usize = 256 * 1024;

/// Buffers for the bytes that connections send in a round, and the number of bytes sent.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Buffer of the bytes that connections send in this round.
    pub(crate) arena: Arena,
    /// Buffer that short queues are copied into for a plain write.
    pub(crate) gather: Vec<u8>,
    /// Buffer and counts of all TLS connections.
    pub(crate) tls_scratch: TlsScratch,
    /// Bytes sent since the last metrics update.
    pub(crate) sent: u64,
}

impl Buffers {
    /// Frees the gather buffer after a round that needed a large one.
    pub(crate) fn shrink_gather(&mut self) {
        if self.gather.capacity() > MAX_KEPT_GATHER_BYTES {
            self.gather = Vec::new();
        }
    }
}
