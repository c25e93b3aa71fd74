//! The pieces of an outbox and their queue.

use std::collections::VecDeque;

use deeperhub_protocol::frame::Frame;

/// One or more complete frames.
#[derive(Debug)]
pub(super) enum Piece {
    /// A frame that other connections may share.
    Shared(Frame),
    /// A range of the worker's arena.
    Arena { start: u32, len: u32 },
}

impl Piece {
    pub(super) fn is_in_arena(&self) -> bool {
        matches!(self, Self::Arena { .. })
    }

    pub(super) fn bytes<'a>(&'a self, arena: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Shared(frame) => frame.as_bytes(),
            Self::Arena { start, len } => &arena[*start as usize..][..*len as usize],
        }
    }
}

/// Queue of any number of pieces.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) pieces: VecDeque<Piece>,
    /// Bytes of the first piece that were written.
    pub(super) written: usize,
    /// Number of pongs at the front. They come after the first piece if that piece is partly
    /// written.
    pub(super) pongs: usize,
    /// Number of pieces at the front that are known not to be in the arena.
    pub(super) detached: usize,
}

/// Pieces of an outbox. The common small cases need no heap memory for a queue.
#[derive(Debug, Default)]
pub(super) enum Pieces {
    #[default]
    Empty,
    /// One piece of which nothing was written.
    One(Piece),
    Many(Box<Queue>),
}
