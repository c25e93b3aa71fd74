//! Buffer of the bytes that a worker's connections send in one round.

use std::cell::Cell;

use deeperhub_protocol::frame::Frame;

/// Receivers of a frame after which it is copied into the arena for further ones. A copy does not pay
/// off for fewer.
const COPY_AFTER_RECEIVERS: u8 = 8;

/// Size of the arena beyond which no frame is copied into it.
const MAX_COPIED_BYTES: usize = 1024 * 1024;

/// Capacity in bytes that the arena always keeps.
const MIN_KEPT_BYTES: usize = 64 * 1024;

/// A frame to send to many connections of one worker.
///
/// The messages of a fan-out are copied once, side by side, into the worker's arena. A connection then
/// extends its range of the arena by a message, and sends the range with one plain write. If a socket
/// is full, the shared frames are queued instead, so that waiting connections share memory.
#[derive(Debug)]
pub struct Multicast {
    frame: Frame,
    plain: Cell<ArenaCopy>,
    /// The same for the frame's compressed form.
    compressed: Cell<ArenaCopy>,
}

impl Multicast {
    /// Creates a multicast of `frame`, sent to no connection yet.
    pub fn new(frame: Frame) -> Self {
        Self { frame, plain: Cell::default(), compressed: Cell::default() }
    }

    /// Returns the frame.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Returns the arena position of `form`: the frame or its compressed form.
    pub(crate) fn copy_slot(&self, form: &Frame) -> &Cell<ArenaCopy> {
        if std::ptr::eq(form, &self.frame) { &self.plain } else { &self.compressed }
    }
}

/// Position of a frame's copy in the arena.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ArenaCopy {
    /// Round of the arena in which it was copied; 0 if it never was.
    round: u32,
    start: u32,
    /// Connections that the frame was sent to, up to [`COPY_AFTER_RECEIVERS`].
    receivers: u8,
}

/// Replies of connections in this round, and copies of frames with many receivers.
#[derive(Debug)]
pub(crate) struct Arena {
    bytes: Vec<u8>,
    /// Copied frames with their positions, in ascending order.
    copied: Vec<(u32, Frame)>,
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

    /// Removes the replies behind `len`, which were sent already or are dropped. No frame may be copied
    /// behind `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        debug_assert!(self.copied.last().is_none_or(|(at, frame)| *at as usize + frame.len() <= len));
        self.peak = self.peak.max(self.bytes.len());
        self.bytes.truncate(len);
    }

    /// Returns the position of the copy of `frame`, or `None` if it has too few receivers yet.
    #[inline]
    pub(crate) fn copy(&mut self, frame: &Frame, copied: &Cell<ArenaCopy>) -> Option<usize> {
        let known = copied.get();
        if known.round == self.round { Some(known.start as usize) } else { self.copy_new(frame, copied) }
    }

    fn copy_new(&mut self, frame: &Frame, copied: &Cell<ArenaCopy>) -> Option<usize> {
        let known = copied.get();
        if known.receivers < COPY_AFTER_RECEIVERS {
            copied.set(ArenaCopy { receivers: known.receivers + 1, ..known });
            return None;
        }
        let start = self.bytes.len();
        if start + frame.len() > MAX_COPIED_BYTES {
            return None;
        }
        self.bytes.extend_from_slice(frame.as_bytes());
        self.copied.push((start as u32, frame.clone()));
        copied.set(ArenaCopy { round: self.round, start: start as u32, receivers: COPY_AFTER_RECEIVERS });
        Some(start)
    }

    /// Returns the frames in `start..end`. Copied frames come back as the shared ones.
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
                    let to = copied.map_or(end, |(start, _)| start.min(end));
                    let own = Frame::from_encoded(self.bytes.get(at..to).unwrap_or_default());
                    at = to;
                    Some(own)
                }
            }
        })
    }

    /// Ends the round and empties the arena.
    pub(crate) fn clear(&mut self) {
        self.peak = self.peak.max(self.bytes.len());
        self.bytes.clear();
        self.copied.clear();
        // After 2^32 rounds an old number could come again, and 0 stands for none.
        self.round = self.round.checked_add(1).unwrap_or(1);
    }

    /// Frees memory far above the peak since the last call. Not called every round: a large round is
    /// usually followed by another, and fresh memory costs a page fault per page.
    pub(crate) fn shrink(&mut self) {
        let peak = std::mem::take(&mut self.peak).max(self.bytes.len());
        if self.bytes.capacity() > MIN_KEPT_BYTES && self.bytes.capacity() / 4 > peak {
            self.bytes.shrink_to(peak);
        }
        if self.copied.capacity() > MIN_KEPT_BYTES / size_of::<(u32, Frame)>() {
            self.copied.shrink_to(self.copied.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends it to the receivers that come before the first copy.
    fn sent_to_few(multicast: &Multicast, arena: &mut Arena) {
        for _ in 0..COPY_AFTER_RECEIVERS {
            assert_eq!(arena.copy(multicast.frame(), multicast.copy_slot(multicast.frame())), None);
        }
    }

    fn copied(multicast: &Multicast, arena: &mut Arena) -> Option<usize> {
        arena.copy(multicast.frame(), multicast.copy_slot(multicast.frame()))
    }

    #[test]
    fn a_frame_for_many_is_copied_once_a_round() {
        let mut arena = Arena::default();
        let multicast = Multicast::new(Frame::text("hello"));
        sent_to_few(&multicast, &mut arena);
        arena.replies().extend_from_slice(b"reply");
        assert_eq!(copied(&multicast, &mut arena), Some(5));
        assert_eq!(copied(&multicast, &mut arena), Some(5));
        assert_eq!(arena.bytes(), b"reply\x81\x05hello");
        arena.clear();
        // Its receivers are still counted.
        assert_eq!(copied(&multicast, &mut arena), Some(0));
    }

    #[test]
    fn a_full_arena_takes_no_copies() {
        let mut arena = Arena::default();
        let multicast = Multicast::new(Frame::binary(&vec![7; MAX_COPIED_BYTES / 2]));
        let other = Multicast::new(Frame::binary(&vec![8; MAX_COPIED_BYTES / 2]));
        sent_to_few(&multicast, &mut arena);
        sent_to_few(&other, &mut arena);
        assert_eq!(copied(&multicast, &mut arena), Some(0));
        assert_eq!(copied(&other, &mut arena), None);
    }

    #[test]
    fn what_was_copied_is_found_as_the_shared_frame() {
        let mut arena = Arena::default();
        let [a, b] = ["first", "second"].map(|text| Multicast::new(Frame::text(text)));
        sent_to_few(&a, &mut arena);
        sent_to_few(&b, &mut arena);
        arena.replies().extend_from_slice(b"own");
        let start = copied(&a, &mut arena);
        assert_eq!(start, Some(3));
        arena.replies().extend_from_slice(b"and own");
        let last = copied(&b, &mut arena);
        let end = arena.len();
        let frames: Vec<Frame> = arena.frames(0, end).collect();
        let bytes: Vec<&[u8]> = frames.iter().map(Frame::as_bytes).collect();
        assert_eq!(bytes, [b"own".as_slice(), b"\x81\x05first", b"and own", b"\x81\x06second"]);
        assert_eq!(frames[1].as_bytes().as_ptr(), a.frame().as_bytes().as_ptr(), "it is shared");
        let of_last: Vec<Frame> = arena.frames(last.unwrap_or_default(), end).collect();
        assert_eq!(of_last.len(), 1);
        assert_eq!(of_last[0].as_bytes().as_ptr(), b.frame().as_bytes().as_ptr());
        assert_eq!(arena.frames(0, 2).map(|frame| frame.as_bytes().to_vec()).collect::<Vec<_>>(), [b"ow"]);
    }
}
