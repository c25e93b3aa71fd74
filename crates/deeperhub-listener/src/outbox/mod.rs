//! The send queue of one connection, its *outbox*.
//!
//! An outbox holds *pieces*. A piece is one or more complete frames that lie contiguously in
//! memory: a shared frame, or a range of the worker's [`Arena`].

mod pieces;
pub(crate) mod write;

use std::ops::Range;

use deeperhub_protocol::frame::Frame;

use crate::arena::Arena;

use pieces::{Piece, Pieces, Queue};
pub(crate) use write::NextWrite;

/// Maximum pongs queued for one connection. It bounds the memory for a client that sends many pings
/// and does not read.
const MAX_PONGS: usize = 32;

/// Maximum end offset of a piece in the arena; offsets have 32 bits. Frames beyond it are copied
/// out of the arena. A round's budget normally ends long before the arena is this large.
const MAX_ARENA_OFFSET: usize = 64 << 20;

/// Send queue of one connection, in the order of sending.
///
/// The worker bounds its length: if it exceeds `max_queue_bytes` even after a write to the socket,
/// the worker closes the connection with 1013. An empty outbox holds no heap memory.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: Pieces,
    len: usize,
}

impl Outbox {
    /// Returns the number of queued bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns `true` if a piece may be in the arena. Returns `false` after
    /// [`detach`](Self::detach), until the next piece is queued.
    pub(crate) fn may_be_in_arena(&self) -> bool {
        match &self.pieces {
            Pieces::Empty => false,
            Pieces::One(piece) => piece.is_in_arena(),
            Pieces::Many(queue) => queue.detached < queue.pieces.len(),
        }
    }

    /// Returns the memory of the outbox: all queued bytes, even of shared frames, and the queue.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.len
            + match &self.pieces {
                Pieces::Empty | Pieces::One(_) => 0,
                Pieces::Many(queue) => size_of::<Queue>() + queue.pieces.capacity() * size_of::<Piece>(),
            }
    }

    /// Appends a shared frame.
    pub(crate) fn push(&mut self, frame: &Frame) {
        self.len += frame.len();
        self.append(Piece::Shared(frame.clone()));
    }

    /// Appends the frames at `range` of the arena.
    pub(crate) fn push_arena(&mut self, arena: &[u8], range: Range<usize>) {
        let Range { start, end } = range;
        if end <= start {
            return;
        }
        if end > MAX_ARENA_OFFSET {
            if let Some(bytes) = arena.get(start..end) {
                self.push(&Frame::from_encoded(bytes));
            }
            return;
        }
        let len = end - start;
        self.len += len;
        // Replies of one connection are often adjacent in the arena. They then become one piece and
        // need one write.
        if let Some(Piece::Arena { start: last_start, len: last_len }) = self.last_mut()
            && *last_start as usize + *last_len as usize == start
        {
            *last_len += len as u32;
            return;
        }
        self.append(Piece::Arena { start: start as u32, len: len as u32 });
    }

    /// Queues a pong at the front, but after a partly written piece and after earlier pongs. If
    /// [`MAX_PONGS`] pongs are queued, the new one replaces the last one: RFC 6455 section 5.5.3
    /// allows answering only the most recent ping.
    pub(crate) fn push_pong(&mut self, frame: Frame) {
        self.len += frame.len();
        let queue = self.queue();
        let position = usize::from(queue.written > 0) + queue.pongs;
        if queue.pongs == MAX_PONGS {
            let replaced = queue
                .pieces
                .get_mut(position - 1)
                .map(|piece| std::mem::replace(piece, Piece::Shared(frame)));
            if let Some(Piece::Shared(replaced)) = replaced {
                self.len -= replaced.len();
            }
        } else {
            queue.pieces.insert(position, Piece::Shared(frame));
            queue.pongs += 1;
            // The pong is not in the arena either, so it extends the detached pieces if it is
            // within or right after them.
            if position <= queue.detached {
                queue.detached += 1;
            }
        }
    }

    /// Drops the queue, except the rest of a partly written piece.
    pub(crate) fn clear(&mut self) {
        let Pieces::Many(queue) = &mut self.pieces else {
            self.pieces = Pieces::Empty;
            self.len = 0;
            return;
        };
        queue.pongs = 0;
        if queue.written == 0 {
            self.pieces = Pieces::Empty;
            self.len = 0;
        } else {
            queue.pieces.truncate(1);
            queue.detached = queue.detached.min(1);
            // Use the piece's length only: its bytes may be in the arena, which is not at hand
            // here.
            self.len = match queue.pieces.front() {
                Some(Piece::Shared(frame)) => frame.len() - queue.written,
                Some(Piece::Arena { len, .. }) => *len as usize - queue.written,
                None => 0,
            };
        }
    }

    /// Replaces all pieces in the arena with frames of their own. Called when the socket is full,
    /// because the arena is emptied at the end of the round.
    pub(crate) fn detach(&mut self, arena: &Arena) {
        let from_first_in_arena = match &mut self.pieces {
            Pieces::One(piece) if piece.is_in_arena() => self.queue().pieces.split_off(0),
            // Skip the detached pieces: a peer that does not read may have a long queue.
            Pieces::Many(queue) => {
                let first = queue.pieces.range(queue.detached..).position(Piece::is_in_arena);
                let Some(first) = first else {
                    queue.detached = queue.pieces.len();
                    return;
                };
                queue.pieces.split_off(queue.detached + first)
            }
            _ => return,
        };
        let queue = self.queue();
        for piece in from_first_in_arena {
            let Piece::Arena { start, len } = piece else {
                queue.pieces.push_back(piece);
                continue;
            };
            let mut frames = arena.frames(start as usize, start as usize + len as usize);
            if queue.pieces.is_empty() {
                // The piece was at the front, so some of its frames may be written. Its unwritten
                // frames may now separate the first piece from the pongs, so stop counting these.
                queue.pongs = 0;
                for frame in frames.by_ref() {
                    if queue.written < frame.len() {
                        queue.pieces.push_back(Piece::Shared(frame));
                        break;
                    }
                    queue.written -= frame.len();
                }
            }
            queue.pieces.extend(frames.map(Piece::Shared));
        }
        queue.detached = queue.pieces.len();
    }

    /// Appends a piece, whose length the caller has added to `len`.
    fn append(&mut self, piece: Piece) {
        match &mut self.pieces {
            Pieces::Empty => self.pieces = Pieces::One(piece),
            Pieces::One(_) => self.queue().pieces.push_back(piece),
            Pieces::Many(queue) => queue.pieces.push_back(piece),
        }
    }

    fn last_mut(&mut self) -> Option<&mut Piece> {
        match &mut self.pieces {
            Pieces::Empty => None,
            Pieces::One(piece) => Some(piece),
            Pieces::Many(queue) => queue.pieces.back_mut(),
        }
    }

    /// Converts the pieces to a [`Queue`] if they are not one, and returns it.
    fn queue(&mut self) -> &mut Queue {
        if !matches!(self.pieces, Pieces::Many(_)) {
            let mut queue = Box::<Queue>::default();
            if let Pieces::One(piece) = std::mem::take(&mut self.pieces) {
                queue.pieces.push_back(piece);
            }
            self.pieces = Pieces::Many(queue);
        }
        match &mut self.pieces {
            Pieces::Many(queue) => queue,
            _ => unreachable!("the pieces were converted above"),
        }
    }
}

#[cfg(test)]
mod tests;
