//! The arena: a worker's buffer for the bytes that its connections send in one round.

use std::cell::Cell;

use deeperhub_protocol::frame::Frame;

/// Number of receivers that get a frame as a shared frame before the frame is copied into the
/// arena. With fewer receivers, the copy costs more than it saves.
const COPY_AFTER_RECEIVERS: u8 = 8;

/// Maximum length of the arena after a frame is copied into it. It bounds the memory of large
/// fan-outs.
const MAX_COPIED_BYTES: usize = 1024 * 1024;

/// Capacity up to which the arena is not shrunk.
const MIN_CAPACITY_BYTES: usize = 64 * 1024;

/// A frame to send to many connections of one worker.
///
/// If a frame has many receivers, it is copied once into the worker's arena. Frames sent one after
/// the other are then adjacent there, and a connection sends them with one plain write. Connections
/// whose sockets are full queue the shared frame instead, so that they share its memory.
#[derive(Debug)]
pub struct Multicast {
    frame: Frame,
    /// Copy of the frame in the arena.
    plain: Cell<ArenaCopy>,
    /// Copy of the frame's compressed form in the arena.
    compressed: Cell<ArenaCopy>,
}

impl Multicast {
    /// Creates a multicast of `frame`. It is sent with
    /// [`Connections::send_multicast`](crate::Connections::send_multicast).
    pub fn new(frame: Frame) -> Self {
        Self { frame, plain: Cell::default(), compressed: Cell::default() }
    }

    /// Returns the frame.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Returns the arena copy of `form`, which is the frame or its compressed form.
    pub(crate) fn copy_slot(&self, form: &Frame) -> &Cell<ArenaCopy> {
        if std::ptr::eq(form, &self.frame) { &self.plain } else { &self.compressed }
    }
}

/// Copy of a frame in the arena, if there is one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ArenaCopy {
    /// Round of the arena in which the frame was copied. 0 if it was never copied.
    round: u32,
    /// Position of the copy.
    start: u32,
    /// Number of connections that got the shared frame, at most [`COPY_AFTER_RECEIVERS`].
    receivers: u8,
}

/// Buffer of a round: replies to connections, and copies of frames with many receivers.
#[derive(Debug)]
pub(crate) struct Arena {
    bytes: Vec<u8>,
    /// Positions of copied frames, in ascending order, with the shared frames.
    copied: Vec<(u32, Frame)>,
    /// Number of the round. Never 0.
    round: u32,
    /// Maximum length since the last [`shrink`](Self::shrink).
    peak: usize,
}

impl Default for Arena {
    fn default() -> Self {
        Self { bytes: Vec::new(), copied: Vec::new(), round: 1, peak: 0 }
    }
}

impl Arena {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the buffer that replies are appended to.
    pub(crate) fn replies(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Removes the bytes from `len` on. The bytes must be replies that were sent or are no longer
    /// needed, not copied frames.
    pub(crate) fn truncate(&mut self, len: usize) {
        debug_assert!(self.copied.last().is_none_or(|(at, frame)| *at as usize + frame.len() <= len));
        self.peak = self.peak.max(self.bytes.len());
        self.bytes.truncate(len);
    }

    /// Counts a receiver of `frame`, and returns the position of its copy in the arena. Makes the
    /// copy if there is none yet. Returns `None` if the frame has too few receivers or the arena is
    /// full.
    #[inline]
    pub(crate) fn copy(&mut self, frame: &Frame, slot: &Cell<ArenaCopy>) -> Option<usize> {
        let copy = slot.get();
        if copy.round == self.round { Some(copy.start as usize) } else { self.copy_new(frame, slot) }
    }

    fn copy_new(&mut self, frame: &Frame, slot: &Cell<ArenaCopy>) -> Option<usize> {
        let copy = slot.get();
        if copy.receivers < COPY_AFTER_RECEIVERS {
            slot.set(ArenaCopy { receivers: copy.receivers + 1, ..copy });
            return None;
        }
        let start = self.bytes.len();
        if start + frame.len() > MAX_COPIED_BYTES {
            return None;
        }
        self.bytes.extend_from_slice(frame.as_bytes());
        self.copied.push((start as u32, frame.clone()));
        slot.set(ArenaCopy { round: self.round, start: start as u32, receivers: COPY_AFTER_RECEIVERS });
        Some(start)
    }

    /// Returns the bytes in `start..end` as frames. A copied frame is returned as the shared frame;
    /// the replies between two copied frames are returned as one new frame.
    pub(crate) fn frames(&self, start: usize, end: usize) -> impl Iterator<Item = Frame> {
        let mut next = self.copied.partition_point(|(at, _)| (*at as usize) < start);
        let mut at = start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let copied = self.copied.get(next).map(|(start, frame)| (*start as usize, frame));
            match copied {
                Some((start, frame)) if start == at => {
                    next += 1;
                    at += frame.len();
                    Some(frame.clone())
                }
                _ => {
                    let replies_end = copied.map_or(end, |(start, _)| start.min(end));
                    let replies = Frame::from_encoded(self.bytes.get(at..replies_end).unwrap_or_default());
                    at = replies_end;
                    Some(replies)
                }
            }
        })
    }

    /// Ends the round and empties the arena.
    pub(crate) fn clear(&mut self) {
        self.peak = self.peak.max(self.bytes.len());
        self.bytes.clear();
        self.copied.clear();
        // Numbers repeat after 2^32 rounds, when no multicast of the first rounds exists any more.
        // 0 is skipped, as it means that a frame was never copied.
        self.round = self.round.checked_add(1).unwrap_or(1);
    }

    /// Frees memory if the capacity is more than four times the peak since the last call. The
    /// worker does not call this every round: a large round is often followed by another, and fresh
    /// memory costs page faults.
    pub(crate) fn shrink(&mut self) {
        let peak = std::mem::take(&mut self.peak).max(self.bytes.len());
        if self.bytes.capacity() > MIN_CAPACITY_BYTES && self.bytes.capacity() / 4 > peak {
            self.bytes.shrink_to(peak);
        }
        if self.copied.capacity() > MIN_CAPACITY_BYTES / size_of::<(u32, Frame)>() {
            self.copied.shrink_to(self.copied.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the receivers that get the shared frame before it is copied.
    fn count_first_receivers(multicast: &Multicast, arena: &mut Arena) {
        for _ in 0..COPY_AFTER_RECEIVERS {
            assert_eq!(arena.copy(multicast.frame(), multicast.copy_slot(multicast.frame())), None);
        }
    }

    fn copied(multicast: &Multicast, arena: &mut Arena) -> Option<usize> {
        arena.copy(multicast.frame(), multicast.copy_slot(multicast.frame()))
    }

    #[test]
    fn a_frame_with_many_receivers_is_copied_once_a_round() {
        let mut arena = Arena::default();
        let multicast = Multicast::new(Frame::text("hello"));
        count_first_receivers(&multicast, &mut arena);
        arena.replies().extend_from_slice(b"reply");
        assert_eq!(copied(&multicast, &mut arena), Some(5));
        assert_eq!(copied(&multicast, &mut arena), Some(5));
        assert_eq!(arena.bytes(), b"reply\x81\x05hello");
        arena.clear();
        // The receivers of earlier rounds still count.
        assert_eq!(copied(&multicast, &mut arena), Some(0));
    }

    #[test]
    fn no_frame_is_copied_into_a_full_arena() {
        let mut arena = Arena::default();
        let multicast = Multicast::new(Frame::binary(&vec![7; MAX_COPIED_BYTES / 2]));
        let other = Multicast::new(Frame::binary(&vec![8; MAX_COPIED_BYTES / 2]));
        count_first_receivers(&multicast, &mut arena);
        count_first_receivers(&other, &mut arena);
        assert_eq!(copied(&multicast, &mut arena), Some(0));
        assert_eq!(copied(&other, &mut arena), None);
    }

    #[test]
    fn copied_frames_are_returned_as_shared_frames() {
        let mut arena = Arena::default();
        let [a, b] = ["first", "second"].map(|text| Multicast::new(Frame::text(text)));
        count_first_receivers(&a, &mut arena);
        count_first_receivers(&b, &mut arena);
        arena.replies().extend_from_slice(b"reply");
        let start = copied(&a, &mut arena);
        assert_eq!(start, Some(5));
        arena.replies().extend_from_slice(b"another");
        let last = copied(&b, &mut arena);
        let end = arena.len();
        let frames: Vec<Frame> = arena.frames(0, end).collect();
        let bytes: Vec<&[u8]> = frames.iter().map(Frame::as_bytes).collect();
        assert_eq!(bytes, [b"reply".as_slice(), b"\x81\x05first", b"another", b"\x81\x06second"]);
        assert_eq!(frames[1].as_bytes().as_ptr(), a.frame().as_bytes().as_ptr(), "the frame is not shared");
        let last_frames: Vec<Frame> = arena.frames(last.unwrap_or_default(), end).collect();
        assert_eq!(last_frames.len(), 1);
        assert_eq!(last_frames[0].as_bytes().as_ptr(), b.frame().as_bytes().as_ptr());
        assert_eq!(arena.frames(0, 2).map(|frame| frame.as_bytes().to_vec()).collect::<Vec<_>>(), [b"re"]);
    }
}
