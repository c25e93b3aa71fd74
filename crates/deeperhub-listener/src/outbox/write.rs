//! The bytes of the next write of an outbox.

use std::io::IoSlice;

use super::Outbox;
use super::pieces::{Piece, Pieces};

/// Maximum slices of one vectored write. Longer queues take several writes in the same round.
pub(crate) const MAX_SLICES: usize = 64;

/// Maximum bytes of a queue whose pieces are copied into one buffer for a plain write. The copy
/// costs less than the slices of a vectored write.
pub(crate) const GATHER_LIMIT: usize = 16 * 1024;

impl Outbox {
    /// Returns the whole queue if it is contiguous in memory.
    pub(crate) fn contiguous<'a>(&'a self, arena: &'a [u8]) -> Option<&'a [u8]> {
        match &self.pieces {
            Pieces::Empty => None,
            Pieces::One(piece) => Some(piece.bytes(arena)),
            Pieces::Many(queue) => match queue.pieces.front() {
                Some(piece) if queue.pieces.len() == 1 => Some(&piece.bytes(arena)[queue.written..]),
                _ => None,
            },
        }
    }

    /// Appends the whole queue to `out`.
    pub(crate) fn gather(&self, arena: &[u8], out: &mut Vec<u8>) {
        match &self.pieces {
            Pieces::Empty => {}
            Pieces::One(piece) => out.extend_from_slice(piece.bytes(arena)),
            Pieces::Many(queue) => {
                let mut written = queue.written;
                for piece in &queue.pieces {
                    out.extend_from_slice(&piece.bytes(arena)[std::mem::take(&mut written)..]);
                }
            }
        }
    }

    /// Returns the bytes of the next write: one slice if the queue is contiguous or short,
    /// otherwise several slices. Pieces of a short queue are copied into `gather`.
    pub(crate) fn next_write<'a>(&'a self, arena: &'a [u8], gather: &'a mut Vec<u8>) -> NextWrite<'a> {
        if let Some(bytes) = self.contiguous(arena) {
            return NextWrite::Slice(bytes);
        }
        let Pieces::Many(queue) = &self.pieces else { return NextWrite::Nothing };
        if self.len <= GATHER_LIMIT {
            gather.clear();
            self.gather(arena, gather);
            return NextWrite::Slice(gather);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut written = queue.written;
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&queue.pieces) {
            *slice = IoSlice::new(&piece.bytes(arena)[std::mem::take(&mut written)..]);
            count += 1;
        }
        NextWrite::Slices(slices, count)
    }

    /// Removes `written` bytes from the front.
    pub(crate) fn advance(&mut self, mut written: usize) {
        self.len -= written.min(self.len);
        if self.len == 0 {
            self.pieces = Pieces::Empty;
            return;
        }
        let queue = self.queue();
        while let Some(piece) = queue.pieces.front() {
            let unwritten = match piece {
                Piece::Shared(frame) => frame.len(),
                Piece::Arena { len, .. } => *len as usize,
            } - queue.written;
            if written < unwritten {
                // Queued pongs come first. The first of them, if any, is now partly written, and
                // `pongs` does not count it any more.
                if written > 0 && queue.written == 0 {
                    queue.pongs = queue.pongs.saturating_sub(1);
                }
                queue.written += written;
                break;
            }
            written -= unwritten;
            // A piece of which nothing was written before is the first pong, if any is counted.
            if queue.written == 0 {
                queue.pongs = queue.pongs.saturating_sub(1);
            }
            queue.written = 0;
            queue.pieces.pop_front();
            queue.detached = queue.detached.saturating_sub(1);
        }
    }
}

/// Bytes to write next, from [`Outbox::next_write`].
#[allow(
    clippy::large_enum_variant,
    reason = "the value is on the stack during one write; boxing the slices would allocate"
)]
pub(crate) enum NextWrite<'a> {
    Nothing,
    Slice(&'a [u8]),
    /// Slices, of which the given number at the front are used.
    Slices([IoSlice<'a>; MAX_SLICES], usize),
}
