//! Frames about streams by their content, and how many were sent.

use deeperhub_protocol::GapReason;

/// Content of a frame about a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamContent {
    Message,
    Gap(GapReason),
    Position,
}

/// Number of frames about streams that were sent, by content.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamCounts {
    pub(crate) messages: u64,
    pub(crate) positions: u64,
    /// Gaps by [`GapReason::index`].
    pub(crate) gaps: [u64; GapReason::ALL.len()],
}

impl StreamCounts {
    #[inline]
    pub(crate) fn count(&mut self, content: StreamContent) {
        match content {
            StreamContent::Message => self.messages += 1,
            StreamContent::Position => self.positions += 1,
            StreamContent::Gap(reason) => {
                self.gaps.iter_mut().skip(reason.index()).take(1).for_each(|count| *count += 1);
            }
        }
    }
}
