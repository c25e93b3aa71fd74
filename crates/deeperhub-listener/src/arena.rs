//! The bytes that a worker's connections send in one round.

use std::cell::Cell;

use deeperhub_protocol::frame::Frame;

/// A frame that has gone to this many connections is copied into the arena, for those that come after them: few
/// receivers do not pay for a copy.
const COPY_AFTER_RECEIVERS: u8 = 8;

/// Bytes of an arena up to which frames are copied into it.
const MAX_COPIED_BYTES: usize = 1024 * 1024;

/// What is kept of the arena however little of it is used.
const MIN_KEPT_BYTES: usize = 64 * 1024;

/// A frame on its way to many connections of one worker.
///
/// The messages of one fan-out are copied once, side by side, to where all of its receivers' bytes of the round stand: to
/// send one more of them, a connection only moves the end of what it sends anyway, and it writes all of them by one
/// plain write. Where a socket does not take them, the frames themselves wait, which all receivers share.
#[derive(Debug)]
pub struct Multicast {
    frame: Frame,
    plain: Cell<ArenaCopy>,
    /// The same for the frame's compressed form.
    compressed: Cell<ArenaCopy>,
}

impl Multicast {
    /// A frame that has not been sent to anybody.
    pub fn new(frame: Frame) -> Self {
        Self { frame, plain: Cell::default(), compressed: Cell::default() }
    }

    /// The frame.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Where the copy of `form` is noted: of the frame, or of its compressed form.
    pub(crate) fn copy_slot(&self, form: &Frame) -> &Cell<ArenaCopy> {
        if std::ptr::eq(form, &self.frame) { &self.plain } else { &self.compressed }
    }
}

/// Where a frame stands in the arena.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ArenaCopy {
    /// The round of the arena, which never is 0.
    round: u32,
    start: u32,
    /// Connections that it was sent to, up to [`COPY_AFTER_RECEIVERS`].
    receivers: u8,
}

/// Replies that connections make in the round, and copies of frames that many of them are sent.
#[derive(Debug)]
pub(crate) struct Arena {
    bytes: Vec<u8>,
    /// The frames that were copied, and where they stand, in ascending order.
    copied: Vec<(u32, Frame)>,
    round: u32,
    /// The most that it held since it was last asked to shrink.
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

    /// To append replies to.
    pub(crate) fn replies(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes back replies that are not to be sent, or are sent already. No frame was copied behind `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        debug_assert!(self.copied.last().is_none_or(|(at, frame)| *at as usize + frame.len() <= len));
        self.peak = self.peak.max(self.bytes.len());
        self.bytes.truncate(len);
    }

    /// Where `frame` stands, if it is worth a copy.
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

    /// The frames that stand from `start` to `end`, which are shared where they were copied from shared ones.
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

    /// Ends the round.
    pub(crate) fn clear(&mut self) {
        self.peak = self.peak.max(self.bytes.len());
        self.bytes.clear();
        self.copied.clear();
        // After 2^32 rounds an old number could come again, and 0 stands for none.
        self.round = self.round.checked_add(1).unwrap_or(1);
    }

    /// Gives back memory that was much more than was used since the last call. Not after each round: one large round
    /// usually is followed by another, and fresh memory costs a fault for each page.
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

    /// Sends it to as many connections as are not worth a copy.
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
        // It has proved to be for many.
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
