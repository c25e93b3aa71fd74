//! A server frame that many connections share.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::encode;
use super::header::{BINARY, TEXT};

/// A complete server frame (header and payload), made once and shared by all its receivers.
///
/// Eight bytes to hold, one reference count to clone. Its bytes never change, and its `Debug` form does not show them.
#[derive(Clone)]
pub struct Frame(Arc<Inner>);

// Two levels, so that a handle is one pointer and each worker can count its own references (`Frame::fork`). A form
// for receivers that negotiated an extension belongs here too, beside `bytes`, made at first need by the worker
// that owns this fork.
struct Inner {
    bytes: Bytes,
}

impl Frame {
    /// One unfragmented, unmasked text frame.
    pub fn text(payload: &str) -> Self {
        Self::encode(TEXT, payload.as_bytes())
    }

    /// One unfragmented, unmasked binary frame.
    pub fn binary(payload: &[u8]) -> Self {
        Self::encode(BINARY, payload)
    }

    /// From bytes that are already one or more complete frames.
    pub fn from_encoded(bytes: &[u8]) -> Self {
        Self::from_bytes(Bytes::copy_from_slice(bytes))
    }

    /// From what `write` appends to an empty buffer, which must be one or more complete frames, as the `write_…`
    /// functions of this module make them.
    ///
    /// The buffer becomes the frame without being copied. `capacity` is how many bytes it has room for at first:
    /// best is exactly what will be written, header included. What is far too much is given back.
    ///
    /// ```
    /// use deeperhub_protocol::frame::{Frame, write_text};
    ///
    /// let frame = Frame::encode_with(7, |out| write_text(out, "hello"));
    /// assert_eq!(frame.as_bytes(), b"\x81\x05hello");
    /// ```
    pub fn encode_with(capacity: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut buffer = Vec::with_capacity(capacity);
        write(&mut buffer);
        // A frame may wait in many queues for long: an eighth and a few bytes are not worth a reallocation, more is.
        if buffer.capacity() - buffer.len() > buffer.len() / 8 + 64 {
            buffer.shrink_to_fit();
        }
        Self::from_bytes(Bytes::from(buffer))
    }

    /// The frame as it goes over the wire.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Bytes on the wire, header included.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.bytes.len()
    }

    /// Whether there is nothing to send. A frame has a header, so only [`Self::from_encoded`] and
    /// [`Self::encode_with`] of nothing are empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.bytes.is_empty()
    }

    /// The same bytes behind a reference count of their own, so that another thread's
    /// clones don't contend for this one's cache line.
    pub fn fork(&self) -> Self {
        Self::from_bytes(self.0.bytes.clone())
    }

    fn encode(opcode: u8, payload: &[u8]) -> Self {
        let header = encode::header_len(payload.len());
        Self::encode_with(header + payload.len(), |out| encode::write_frame(out, opcode, payload))
    }

    fn from_bytes(bytes: Bytes) -> Self {
        Self(Arc::new(Inner { bytes }))
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_one_pointer() {
        assert_eq!(size_of::<Frame>(), 8);
        assert_eq!(size_of::<Option<Frame>>(), 8);
    }

    #[test]
    fn text_and_binary_differ_in_their_opcode_only() {
        assert_eq!(Frame::text("hi").as_bytes(), b"\x81\x02hi");
        assert_eq!(Frame::binary(b"hi").as_bytes(), b"\x82\x02hi");
        assert_eq!(Frame::text("").len(), 2);
    }

    #[test]
    fn a_fork_has_the_same_bytes_and_its_own_count() {
        let frame = Frame::text("payload");
        let fork = frame.fork();
        assert_eq!(frame.as_bytes().as_ptr(), fork.as_bytes().as_ptr(), "the bytes are shared");
        assert!(!Arc::ptr_eq(&frame.0, &fork.0), "the count is not");
        drop(frame);
        assert_eq!(fork.as_bytes(), b"\x81\x07payload");
    }

    #[test]
    fn encoding_in_place_keeps_little_spare_memory() {
        let frame = Frame::encode_with(4096, |out| encode::write_text(out, "short"));
        assert_eq!(frame.as_bytes(), b"\x81\x05short");
        let frame = Frame::encode_with(0, |out| encode::write_text(out, "grown"));
        assert_eq!(frame.as_bytes(), b"\x81\x05grown");
    }

    #[test]
    fn payloads_are_not_in_the_debug_form() {
        assert_eq!(format!("{:?}", Frame::text("secret")), "Frame { len: 8, .. }");
    }

    #[test]
    fn frames_go_to_other_threads() {
        fn check<T: Send + Sync>() {}
        check::<Frame>();
    }
}
