//! Handles of frames that a history keeps.

use std::fmt;
use std::sync::Arc;

use super::Frame;
use super::shared::Content;

/// Distance of bytes that are fetched together.
const CACHE_LINE_BYTES: usize = 64;

/// A frame in a history: a handle of eight bytes on the content of a [`Frame`].
///
/// Unlike a [`Frame`], it has no reference count of its own for one worker, so it needs less memory.
/// [`Self::to_frame`] makes a frame that can be sent. A compressed form that a fork made stays in
/// memory as long as the content. `Debug` does not show the bytes.
#[derive(Clone)]
pub struct KeptFrame(pub(super) Arc<Content>);

impl KeptFrame {
    /// Heap bytes of one kept frame in addition to its bytes on the wire: the content and its
    /// reference counts. The allocator's rounding, unused capacity and a compressed form are not
    /// included.
    pub const OVERHEAD_BYTES: u32 = (size_of::<Content>() + 2 * size_of::<usize>()) as u32;

    /// Returns the frame's bytes on the wire.
    #[inline]
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Returns the length on the wire, header included.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Returns `true` if there are no bytes to send ([`Frame::is_empty`]).
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_bytes().is_empty()
    }

    /// Fetches the bytes of frames and their reference counts into the processor's caches. This takes
    /// less time than to use one frame after the other, if they were last used long ago: no fetch
    /// waits for another.
    pub fn fetch_all(frames: &[Self]) {
        let counts: usize = frames.iter().map(|frame| Arc::strong_count(&frame.0)).sum();
        let lines = frames.iter().flat_map(|frame| frame.as_bytes().iter().step_by(CACHE_LINE_BYTES));
        // The sums are of no use, but the compiler must not leave them out.
        std::hint::black_box((counts, lines.fold(0, |sum, byte| sum ^ byte)));
    }

    /// Returns a new fork of the frame ([`Frame::fork`]). The forks share the compressed form.
    #[must_use]
    pub fn to_frame(&self) -> Frame {
        self.clone().into_frame()
    }

    /// Turns the handle into a fork of the frame, like [`Self::to_frame`].
    #[inline]
    #[must_use]
    pub fn into_frame(self) -> Frame {
        Frame::from_content(self.0)
    }

    #[inline]
    pub(super) fn new(content: Content) -> Self {
        Self(Arc::new(content))
    }

    /// Returns the capacity of the buffer.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Returns `true` if [`Unsealed::excluding_publisher`](super::Unsealed::excluding_publisher)
    /// was called for this frame.
    pub(crate) fn excludes_publisher(&self) -> bool {
        self.0.excludes_publisher
    }
}

impl fmt::Debug for KeptFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptFrame").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_frame_is_one_pointer() {
        assert_eq!(size_of::<KeptFrame>(), 8);
        assert_eq!(size_of::<Option<KeptFrame>>(), 8);
    }

    #[test]
    fn a_kept_frame_shares_the_bytes_of_all_forks() {
        let frame = Frame::text("payload");
        let kept = frame.keep();
        let bytes = frame.as_bytes().as_ptr();
        drop(frame);
        assert_eq!((kept.as_bytes(), kept.len(), kept.is_empty()), (&b"\x81\x07payload"[..], 9, false));
        for same in [kept.to_frame(), kept.clone().to_frame(), kept.to_frame().keep().to_frame()] {
            assert_eq!(same.as_bytes().as_ptr(), bytes);
        }
        assert!(Frame::from_encoded(b"").keep().is_empty());
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn a_kept_frame_is_compressed_once() {
        use crate::deflate::{Config, Deflater, negotiate};

        let config = Config::default();
        let params = negotiate(&config, [&b"permessage-deflate"[..]]).unwrap().unwrap();
        let mut deflater = Deflater::new(&config);
        let frame = Frame::text(&"all the same ".repeat(100));
        let kept = frame.keep();
        let compressed = frame.for_receiver(&mut deflater, params).as_bytes().as_ptr();
        assert_ne!(compressed, frame.as_bytes().as_ptr());
        drop(frame);
        for _ in 0..2 {
            let fork = kept.to_frame();
            assert_eq!(fork.for_receiver(&mut deflater, params).as_bytes().as_ptr(), compressed);
        }
    }

    #[test]
    fn payloads_are_not_in_the_debug_form() {
        assert_eq!(format!("{:?}", Frame::text("secret").keep()), "KeptFrame { len: 8, .. }");
    }

    #[test]
    fn kept_frames_are_send_and_sync() {
        fn check<T: Send + Sync>() {}
        check::<KeptFrame>();
    }
}
