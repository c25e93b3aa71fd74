//! Evicted frames that a thread drops together.
//!
//! An evicted frame was last used long ago, so its reference count and its bytes have left the
//! processor's caches. The thread that drops it waits for the count, and then for the bytes, because
//! the allocator gives their memory to the next frame. For many frames at once, the processor fetches
//! all of that at the same time.

use std::cell::RefCell;

use deeperhub_protocol::frame::KeptFrame;

use super::kept::EvictedFrames;

/// Frames that a thread keeps until it drops them.
const MAX_FRAMES: usize = 64;

/// Bytes of the frames that a thread keeps. Longer frames are dropped at once.
const MAX_BYTES: usize = 64 << 10;

#[derive(Debug)]
struct Retired {
    frames: Vec<KeptFrame>,
    bytes: usize,
}

thread_local! {
    static RETIRED: RefCell<Retired> = const { RefCell::new(Retired { frames: Vec::new(), bytes: 0 }) };
}

/// Drops frames, at once or with later ones of this thread.
#[inline]
pub(super) fn retire(evicted: &mut EvictedFrames) {
    if !evicted.is_empty() {
        RETIRED.with_borrow_mut(|retired| retired.add(evicted));
    }
}

impl Retired {
    #[inline]
    fn add(&mut self, evicted: &mut EvictedFrames) {
        // The frames themselves are not looked at before all of them are.
        self.bytes = self.bytes.saturating_add(evicted.bytes());
        self.frames.extend(evicted.drain().map(|(frame, _)| frame));
        if self.frames.len() >= MAX_FRAMES || self.bytes > MAX_BYTES {
            self.drop_all();
        }
    }

    #[inline(never)]
    fn drop_all(&mut self) {
        if self.bytes <= MAX_BYTES {
            KeptFrame::fetch_all(&self.frames);
        }
        self.frames.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_history::{Retention, Seconds, Stream};
    use deeperhub_protocol::Epoch;
    use deeperhub_protocol::frame::Frame;

    use super::*;

    /// Evicts frames of these lengths, one after the other, and returns the number of those that stay.
    fn kept_after(lengths: impl IntoIterator<Item = usize>) -> usize {
        let bounds = Retention { messages: 1, bytes: u32::MAX, ttl_seconds: 60 };
        let mut stream = Stream::new(Epoch::from_bits(1));
        let mut retired = Retired { frames: Vec::new(), bytes: 0 };
        for length in lengths.into_iter().chain([0]) {
            let mut evicted = EvictedFrames::new();
            let frame = Frame::text(&"x".repeat(length)).keep();
            stream.append(&bounds, Seconds::new(0), &mut evicted, |_, _| (frame, length));
            retired.add(&mut evicted);
        }
        assert_eq!(retired.frames.is_empty(), retired.bytes == 0);
        retired.frames.len()
    }

    #[test]
    fn few_short_frames_stay() {
        assert_eq!(kept_after([1; MAX_FRAMES - 1]), MAX_FRAMES - 1);
        assert_eq!(kept_after([1; MAX_FRAMES]), 0);
        assert_eq!(kept_after([1, 2, MAX_BYTES]), 0);
        assert_eq!(kept_after([MAX_BYTES + 1, 1]), 1);
        assert_eq!(kept_after([MAX_BYTES / 4; 3]), 3);
    }
}
