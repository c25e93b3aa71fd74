//! The send queue of one connection, its *outbox*.
//!
//! An outbox holds *pieces*. A piece is one or more complete frames that lie contiguously in
//! memory: a shared frame, or a range of the worker's [`Arena`].

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use deeperhub_protocol::frame::Frame;

use crate::arena::Arena;

/// Maximum slices of one vectored write. Longer queues take several writes in the same round.
pub(crate) const MAX_SLICES: usize = 64;

/// Maximum bytes of a queue whose pieces are copied into one buffer for a plain write. The copy
/// costs less than the slices of a vectored write.
pub(crate) const GATHER_LIMIT: usize = 16 * 1024;

/// Maximum pongs queued for one connection. It bounds the memory for a client that sends many pings
/// and does not read.
const MAX_PONGS: usize = 32;

/// Maximum end offset of a piece in the arena; offsets have 32 bits. Frames beyond it are copied
/// out of the arena. A round's budget normally ends long before the arena is this large.
const MAX_ARENA_OFFSET: usize = 64 << 20;

/// One or more complete frames.
#[derive(Debug)]
enum Piece {
    /// A frame that other connections may share.
    Shared(Frame),
    /// A range of the worker's arena.
    Arena { start: u32, len: u32 },
}

impl Piece {
    fn is_in_arena(&self) -> bool {
        matches!(self, Self::Arena { .. })
    }

    fn bytes<'a>(&'a self, arena: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Shared(frame) => frame.as_bytes(),
            Self::Arena { start, len } => &arena[*start as usize..][..*len as usize],
        }
    }
}

/// Queue of any number of pieces.
#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that were written.
    written: usize,
    /// Number of pongs at the front. They come after the first piece if that piece is partly
    /// written.
    pongs: usize,
    /// Number of pieces at the front that are known not to be in the arena.
    detached: usize,
}

/// Pieces of an outbox. The common small cases need no heap memory for a queue.
#[derive(Debug, Default)]
enum Pieces {
    #[default]
    Empty,
    /// One piece of which nothing was written.
    One(Piece),
    Many(Box<Queue>),
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Multicast;
    use deeperhub_protocol::frame;

    fn text(payload: &str) -> Frame {
        Frame::text(payload)
    }

    fn pong(payload: &[u8]) -> Frame {
        let mut out = Vec::new();
        frame::write_pong(&mut out, payload);
        Frame::from_encoded(&out)
    }

    fn in_arena(bytes: &[u8]) -> Arena {
        let mut arena = Arena::default();
        arena.replies().extend_from_slice(bytes);
        arena
    }

    /// Writes the whole queue, `step` bytes at a time.
    fn drain(outbox: &mut Outbox, arena: &[u8], step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut gather = Vec::new();
        loop {
            let written = match outbox.next_write(arena, &mut gather) {
                NextWrite::Nothing => break,
                NextWrite::Slice(bytes) => {
                    let written = bytes.len().min(step);
                    out.extend_from_slice(&bytes[..written]);
                    written
                }
                NextWrite::Slices(slices, count) => {
                    let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                    let written = all.len().min(step);
                    out.extend_from_slice(&all[..written]);
                    written
                }
            };
            outbox.advance(written);
        }
        assert_eq!(outbox.len(), 0);
        out
    }

    #[test]
    fn pieces_are_written_in_order_whatever_the_length_of_the_writes() {
        let large = "x".repeat(9000);
        for step in [1, 3, 7, 4096, 1 << 20] {
            let mut outbox = Outbox::default();
            let arena = b"onetwo".to_vec();
            outbox.push(&text("a"));
            outbox.push_arena(&arena, 0..3);
            outbox.push_arena(&arena, 3..6);
            outbox.push(&text(&large));
            outbox.push(&text(&large));
            let mut expected = text("a").as_bytes().to_vec();
            expected.extend_from_slice(b"onetwo");
            expected.extend_from_slice(text(&large).as_bytes());
            expected.extend_from_slice(text(&large).as_bytes());
            assert_eq!(outbox.len(), expected.len());
            assert_eq!(drain(&mut outbox, &arena, step), expected);
        }
    }

    #[test]
    fn detached_pieces_do_not_need_the_arena() {
        let mut outbox = Outbox::default();
        let arena = b"reply".to_vec();
        outbox.push_arena(&arena, 0..5);
        outbox.advance(2);
        outbox.detach(&in_arena(&arena));
        assert_eq!(drain(&mut outbox, &[], 10), b"ply");
    }

    #[test]
    fn frames_of_a_fan_out_are_one_piece_until_detached_as_shared_frames() {
        let frames = ["one", "two", "three"].map(Frame::text);
        let expected: Vec<u8> = frames.iter().flat_map(|frame| frame.as_bytes().to_vec()).collect();
        for written in 0..expected.len() {
            let fan_out = frames.clone().map(Multicast::new);
            let mut arena = Arena::default();
            let mut outboxes: [Outbox; 10] = Default::default();
            for outbox in &mut outboxes {
                for multicast in &fan_out {
                    let frame = multicast.frame();
                    match arena.copy(frame, multicast.copy_slot(frame)) {
                        Some(start) => outbox.push_arena(arena.bytes(), start..start + frame.len()),
                        None => outbox.push(frame),
                    }
                }
            }
            let last = &mut outboxes[9];
            assert!(matches!(last.pieces, Pieces::One(Piece::Arena { .. })));
            if written > 0 {
                last.advance(written);
            }
            last.detach(&arena);
            arena.clear();
            assert_eq!(last.len(), expected.len() - written);
            if let Pieces::Many(queue) = &last.pieces {
                let shares = |piece: &Piece| match piece {
                    Piece::Shared(frame) => fan_out
                        .iter()
                        .any(|multicast| multicast.frame().as_bytes().as_ptr() == frame.as_bytes().as_ptr()),
                    Piece::Arena { .. } => false,
                };
                assert!(queue.pieces.iter().all(shares));
            }
            last.push_pong(pong(b"p"));
            let rest = drain(last, &[], 3);
            assert_eq!(rest.len(), expected.len() - written + pong(b"p").len());
            assert!(rest.ends_with(fan_out[2].frame().as_bytes()) || written > expected.len() - 7);
        }
    }

    /// Simulates rounds of replies and deliveries to a peer that reads slowly.
    #[test]
    fn pieces_of_many_rounds_are_written_in_order() {
        for step in [0, 1, 2, 5, 11, 40] {
            let mut outbox = Outbox::default();
            let (mut expected, mut written) = (Vec::new(), Vec::new());
            for round in 0..40 {
                let mut arena = Arena::default();
                for nth in 0..round % 5 {
                    let frame = text(&format!("{round}.{nth}"));
                    expected.extend_from_slice(frame.as_bytes());
                    if (round + nth) % 3 == 0 {
                        outbox.push(&frame);
                    } else {
                        let start = arena.len();
                        arena.replies().extend_from_slice(frame.as_bytes());
                        outbox.push_arena(arena.bytes(), start..arena.len());
                    }
                }
                let mut gather = Vec::new();
                outbox.gather(arena.bytes(), &mut gather);
                assert_eq!(gather.len(), outbox.len());
                let step = step.min(gather.len());
                written.extend_from_slice(&gather[..step]);
                outbox.advance(step);
                outbox.detach(&arena);
                if let Pieces::Many(queue) = &outbox.pieces {
                    assert_eq!(queue.detached, queue.pieces.len());
                    assert!(!queue.pieces.iter().any(Piece::is_in_arena));
                }
            }
            written.extend(drain(&mut outbox, &[], 7));
            assert_eq!(written, expected, "{step} bytes a round");
        }
    }

    /// Checks that `detached` never counts a piece in the arena, whatever happens between two calls
    /// of `detach`.
    #[test]
    fn detached_pieces_are_never_in_the_arena() {
        for (step, clears) in [(0, false), (1, false), (4, true), (9, false), (30, true)] {
            let mut outbox = Outbox::default();
            for round in 0..60_usize {
                let mut arena = Arena::default();
                if round % 4 == 0 {
                    outbox.push_pong(pong(b"before"));
                }
                for nth in 0..round % 3 {
                    let start = arena.len();
                    arena.replies().extend_from_slice(text("reply").as_bytes());
                    outbox.push_arena(arena.bytes(), start..arena.len());
                    // Bytes of another connection, so that the next reply is not adjacent.
                    arena.replies().extend_from_slice(text("of another").as_bytes());
                    if nth == 1 {
                        outbox.push(&text("shared"));
                    }
                }
                outbox.advance(step.min(outbox.len()));
                if round % 5 == 0 {
                    outbox.push_pong(pong(b"between"));
                }
                if clears && round % 7 == 0 {
                    outbox.clear();
                }
                if let Pieces::Many(queue) = &outbox.pieces {
                    assert!(queue.detached <= queue.pieces.len());
                    assert!(!queue.pieces.iter().take(queue.detached).any(Piece::is_in_arena));
                }
                outbox.detach(&arena);
                let mut bytes = Vec::new();
                outbox.gather(&[], &mut bytes);
                assert_eq!(bytes.len(), outbox.len(), "round {round}, {step} bytes a round");
            }
        }
    }

    #[test]
    fn pongs_are_sent_before_queued_frames_but_not_within_one() {
        let mut outbox = Outbox::default();
        outbox.push(&text("first"));
        outbox.push(&text("second"));
        outbox.advance(3);
        outbox.push_pong(pong(b"1"));
        outbox.push_pong(pong(b"2"));
        let mut expected = text("first").as_bytes()[3..].to_vec();
        for frame in [pong(b"1"), pong(b"2"), text("second")] {
            expected.extend_from_slice(frame.as_bytes());
        }
        assert_eq!(drain(&mut outbox, &[], 2), expected);
    }

    #[test]
    fn queued_pongs_are_bounded() {
        let mut outbox = Outbox::default();
        outbox.push(&text("data"));
        for n in 0..200_u8 {
            outbox.push_pong(pong(&[n]));
        }
        let all = drain(&mut outbox, &[], 5);
        assert_eq!(all.len(), MAX_PONGS * 3 + text("data").len());
        assert_eq!(all[MAX_PONGS * 3 - 1], 199);
    }

    #[test]
    fn clear_keeps_the_rest_of_a_partly_written_frame() {
        let mut outbox = Outbox::default();
        outbox.push(&text("first"));
        outbox.push(&text("second"));
        outbox.advance(4);
        outbox.clear();
        assert_eq!(drain(&mut outbox, &[], 100), text("first").as_bytes()[4..]);
        outbox.push(&text("x"));
        outbox.clear();
        assert!(outbox.is_empty());
    }
}
