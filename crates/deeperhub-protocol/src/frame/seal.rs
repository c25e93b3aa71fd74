//! Frames of deliveries whose position is added last.

use super::encode::{header_len, text_header};
use super::shared::Content;
use super::{Frame, KeptFrame};
use crate::Epoch;

/// The text between epoch and offset.
const OFFSET_KEY: &str = r#"","offset":"#;
const PREV_KEY: &str = r#","prev":"#;
const END: &str = "}}";

/// Maximum number of digits of an offset.
const MAX_DIGITS: usize = 20;

/// Number of digits for which bytes are reserved: offsets of a stream with a million messages in a
/// second for 11 days, or with 1000 messages in a second for 31 years. A history keeps the unused
/// bytes of each message, so the maximum would waste memory.
const RESERVED_DIGITS: usize = 12;

/// Bytes reserved for the position without `prev`, and the end.
const RESERVED_TAIL_BYTES: usize = Epoch::BYTES + OFFSET_KEY.len() + RESERVED_DIGITS + END.len();

/// Maximum length of the position and the end.
const MAX_TAIL_BYTES: usize =
    Epoch::BYTES + OFFSET_KEY.len() + MAX_DIGITS + PREV_KEY.len() + MAX_DIGITS + END.len();

/// Maximum unused capacity that is kept besides the reserved bytes.
const MAX_SPARE_BYTES: usize = 16;

/// Length of the header of nearly all deliveries: with a payload of 126 to 65,535 bytes.
const USUAL_HEADER_BYTES: usize = 4;

/// A delivery that is encoded except for its epoch and offset.
///
/// A server gives an offset under the lock of the stream. Encoding the rest before the lock keeps
/// the time under the lock short and independent of the payload's length. The position follows the
/// payload in the text, and the buffer has space for the frame header before the text. So
/// [`Self::seal`] neither moves nor copies the payload.
///
/// [`StreamMessage::encode`](crate::message::StreamMessage::encode) creates it.
pub struct Unsealed {
    /// Space for the header, the text up to the epoch, then `meta` up to the end of the text. There
    /// is no reference count before [`Self::seal`], because one that may be shared costs atomic
    /// operations with each change of the bytes.
    bytes: Vec<u8>,
    /// Length of the space for the header, at most ten bytes.
    header_space: usize,
    /// Length of `meta`; 0 without trace context.
    meta_len: usize,
    excludes_publisher: bool,
}

impl Unsealed {
    /// Creates a delivery from the bytes that `write` and then `write_meta` append. `write` writes
    /// the text up to the epoch. `write_meta` writes the end of `data`, `meta` and the end of the
    /// message, or nothing without trace context. `capacity` is the expected length of both.
    #[inline]
    pub(crate) fn encode_with(
        capacity: usize,
        write: impl FnOnce(&mut Vec<u8>),
        write_meta: impl FnOnce(&mut Vec<u8>),
    ) -> Self {
        // The longest text determines the space, so that a header of any length fits. The text is
        // at most a few bytes shorter, so the space is nearly always exact.
        let header_space = header_len(capacity + MAX_TAIL_BYTES);
        let mut bytes = Vec::with_capacity(header_space + capacity + RESERVED_TAIL_BYTES);
        // Without a call for a length that the compiler does not know.
        if header_space == USUAL_HEADER_BYTES {
            bytes.extend_from_slice(&[0; USUAL_HEADER_BYTES]);
        } else {
            bytes.resize(header_space, 0);
        }
        write(&mut bytes);
        let meta_start = bytes.len();
        write_meta(&mut bytes);
        let meta_len = bytes.len() - meta_start;
        let longest_header = header_len(bytes.len() - header_space + MAX_TAIL_BYTES);
        if longest_header > header_space {
            // Escapes made the text longer than expected, so that it needs a longer header.
            bytes.splice(0..0, std::iter::repeat_n(0, longest_header - header_space));
        }
        // Escapes can also have used up the reserved bytes, or have made the buffer grow much.
        bytes.reserve_exact(RESERVED_TAIL_BYTES);
        let needed = bytes.len() + RESERVED_TAIL_BYTES;
        if bytes.capacity() - needed > MAX_SPARE_BYTES {
            bytes.shrink_to(needed);
        }
        Self { bytes, header_space: longest_header.max(header_space), meta_len, excludes_publisher: false }
    }

    /// Marks the delivery as one that its publisher does not get: [`KeptFrame::is_for`] returns
    /// `false` for the publisher. The bytes stay the same.
    ///
    /// [`KeptFrame::is_for`]: super::KeptFrame::is_for
    #[must_use]
    pub fn excluding_publisher(mut self) -> Self {
        self.excludes_publisher = true;
        self
    }

    /// Adds the position, and returns the frame. `prev` is the offset of the previous message of
    /// the topic's subscribers, if it is not `offset - 1`.
    ///
    /// The buffer is reallocated only with `prev`, or if `offset` has more than 12 digits.
    #[must_use]
    pub fn seal(self, epoch: Epoch, offset: u64, prev: Option<u64>) -> Frame {
        self.seal_kept(epoch, offset, prev).into_frame()
    }

    /// Adds the position like [`Self::seal`], and returns the frame as a history keeps it.
    #[must_use]
    pub fn seal_kept(self, epoch: Epoch, offset: u64, prev: Option<u64>) -> KeptFrame {
        let Self { mut bytes, header_space, meta_len, excludes_publisher } = self;
        let position_start = bytes.len() - meta_len;
        let (mut offset_digits, mut prev_digits) = (itoa::Buffer::new(), itoa::Buffer::new());
        let offset = offset_digits.format(offset);
        let prev = prev.map(|prev| prev_digits.format(prev));
        let prev_len = prev.map_or(0, |prev| PREV_KEY.len() + prev.len());
        bytes.reserve_exact(Epoch::BYTES + OFFSET_KEY.len() + offset.len() + prev_len + END.len());
        bytes.extend_from_slice(&epoch.to_bytes());
        bytes.extend_from_slice(OFFSET_KEY.as_bytes());
        bytes.extend_from_slice(offset.as_bytes());
        if let Some(prev) = prev {
            bytes.extend_from_slice(PREV_KEY.as_bytes());
            bytes.extend_from_slice(prev.as_bytes());
        }
        if meta_len == 0 {
            bytes.extend_from_slice(END.as_bytes());
        } else {
            bytes[position_start..].rotate_left(meta_len);
        }
        let (header, header_len) = text_header(bytes.len() - header_space);
        let start = header_space - header_len;
        match (bytes.first_chunk_mut(), header.first_chunk::<USUAL_HEADER_BYTES>()) {
            (Some(space), Some(header)) if header_len == USUAL_HEADER_BYTES && start == 0 => *space = *header,
            _ => bytes[start..header_space].copy_from_slice(&header[..header_len]),
        }
        // At most eight: the longest header minus the shortest.
        KeptFrame::new(Content::new(bytes, start as u8, excludes_publisher))
    }

    /// Returns the addresses of the allocated buffer.
    #[cfg(test)]
    pub(crate) fn buffer(&self) -> std::ops::Range<*const u8> {
        let start = self.bytes.as_ptr();
        start..start.wrapping_add(self.bytes.capacity())
    }
}

impl std::fmt::Debug for Unsealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unsealed").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_frame_has_little_unused_capacity() {
        for (offset, prev) in [(1, None), (1, Some(0)), (u64::MAX, None), (u64::MAX, Some(u64::MAX))] {
            for text_len in [1, 60, 1000, 70_000] {
                let text = vec![b'x'; text_len];
                // An expected length that is too short, exact or too long.
                for expected in [0, text_len, text_len + 500] {
                    let write = |out: &mut Vec<u8>| out.extend_from_slice(&text);
                    let unsealed = Unsealed::encode_with(expected, write, |_| {});
                    let frame = unsealed.seal_kept(Epoch::from_bits(1), offset, prev);
                    let length = frame.len();
                    let unused = frame.capacity() - length;
                    assert!(
                        unused <= 8 + RESERVED_DIGITS + MAX_SPARE_BYTES,
                        "{unused} bytes unused of {length}"
                    );
                }
            }
        }
    }
}
