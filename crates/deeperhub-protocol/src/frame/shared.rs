//! A server frame shared by many connections.

use std::fmt;
use std::sync::Arc;
#[cfg(feature = "deflate")]
use std::sync::OnceLock;

use super::KeptFrame;
use super::encode;
use super::header::{BINARY, TEXT};
#[cfg(feature = "deflate")]
use crate::deflate::{Deflater, Params};

/// A complete server frame (header and payload), encoded once and shared by all its receivers.
///
/// A frame is a handle of eight bytes; a clone increments one reference count. The frame's bytes
/// never change. `Debug` does not show them, because they can contain secrets.
#[derive(Clone)]
pub struct Frame(Arc<Handle>);

/// The content of a fork, behind the fork's own reference count.
///
/// The two levels of `Arc` keep a [`Frame`] at one pointer, and let each worker count its
/// references separately ([`Frame::fork`]).
struct Handle {
    source: Source,
    /// This fork's handle of the compressed form, which has a separate reference count too.
    #[cfg(feature = "deflate")]
    deflated: OnceLock<Option<Frame>>,
}

/// The place of a fork's bytes.
enum Source {
    /// In the handle itself. Most frames have one fork, which costs one allocation less then.
    Own(Vec<u8>),
    /// In a frame with the bytes in its own handle.
    ForkOf(Frame),
    /// In a content that a history can keep.
    Shared(Arc<Content>),
}

impl Source {
    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::ForkOf(frame) => frame.own_bytes(),
            Self::Shared(content) => content.as_bytes(),
        }
    }
}

/// The content shared by all forks.
///
/// A history keeps one for each message, so its size matters. With the reference counts, it fills
/// the allocator's size class of 64 bytes (48 bytes without compression).
pub(super) struct Content {
    /// The frame, after `start` unused bytes.
    bytes: Vec<u8>,
    /// Number of unused bytes, which is less than the length of the longest header.
    start: u8,
    /// `true` if the frame is a delivery that its publisher does not get.
    pub(super) excludes_publisher: bool,
    /// The compressed form, made on first use; `None` if the frame is sent uncompressed.
    #[cfg(feature = "deflate")]
    deflated: OnceLock<Option<Arc<Self>>>,
}

impl Content {
    #[inline]
    pub(super) const fn new(bytes: Vec<u8>, start: u8, excludes_publisher: bool) -> Self {
        Self {
            bytes,
            start,
            excludes_publisher,
            #[cfg(feature = "deflate")]
            deflated: OnceLock::new(),
        }
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(usize::from(self.start)..).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) const fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

impl Frame {
    /// Encodes one unfragmented, unmasked text frame.
    pub fn text(payload: &str) -> Self {
        Self::encode(TEXT, payload.as_bytes())
    }

    /// Encodes one unfragmented, unmasked binary frame.
    pub fn binary(payload: &[u8]) -> Self {
        Self::encode(BINARY, payload)
    }

    /// Creates a frame by copying `bytes`, which must be one or more complete frames.
    pub fn from_encoded(bytes: &[u8]) -> Self {
        Self::from_bytes(bytes.to_vec())
    }

    /// Creates a frame from the bytes that `write` appends to an empty buffer. They must be one or
    /// more complete frames, as written by the `write_…` functions of this module.
    ///
    /// The buffer becomes the frame without a copy. `capacity` is the initial capacity in bytes,
    /// ideally the exact length including the header. Much unused capacity is released.
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
        // A frame can wait in queues for a long time. Unused capacity is therefore worth a
        // reallocation if it exceeds an eighth of the length plus 64 bytes.
        if buffer.capacity() - buffer.len() > buffer.len() / 8 + 64 {
            buffer.shrink_to_fit();
        }
        Self::from_bytes(buffer)
    }

    /// Returns the frame's bytes on the wire.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.source.as_bytes()
    }

    /// Returns the bytes in the frame's own handle.
    fn own_bytes(&self) -> &[u8] {
        if let Source::Own(bytes) = &self.0.source { bytes } else { &[] }
    }

    /// Returns the length on the wire, header included.
    #[inline]
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Returns `true` if there are no bytes to send. Every frame has a header, so only
    /// [`Self::from_encoded`] and [`Self::encode_with`] can create an empty value.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.as_bytes().is_empty()
    }

    /// Returns a fork: the same frame with a separate reference count. Clones of the fork on
    /// another thread then do not contend for the cache line of this frame's count.
    pub fn fork(&self) -> Self {
        Self::from_source(match &self.0.source {
            Source::Own(_) => Source::ForkOf(self.clone()),
            Source::ForkOf(frame) => Source::ForkOf(frame.clone()),
            Source::Shared(content) => Source::Shared(Arc::clone(content)),
        })
    }

    /// Returns a handle for a history, which needs less memory than a frame. Copies the bytes of
    /// frames that are made for one delivery
    /// ([`DeliveryEncoder`](crate::message::DeliveryEncoder)).
    ///
    /// ```
    /// use deeperhub_protocol::frame::Frame;
    ///
    /// let kept = Frame::text("hello").keep();
    /// assert_eq!(kept.to_frame().as_bytes(), b"\x81\x05hello");
    /// ```
    pub fn keep(&self) -> KeptFrame {
        match &self.0.source {
            Source::Shared(content) => KeptFrame(Arc::clone(content)),
            Source::Own(_) | Source::ForkOf(_) => {
                KeptFrame::new(Content::new(self.as_bytes().to_vec(), 0, false))
            }
        }
    }

    /// Returns the form of this frame for a client with `params`: the compressed form, or the frame
    /// itself in one of these cases:
    ///
    /// - The payload is below the threshold.
    /// - Compression does not shrink the payload (unless the threshold is 0).
    /// - The frame is longer than the client's window ([`Params::fits_window`]).
    /// - The frame is not one whole message.
    ///
    /// The first call compresses the frame for all forks. Calls from other workers wait during that
    /// time. If the frame is not worth compressing, later calls do not try again. Compression saves
    /// `frame.len() - frame.for_receiver(…).len()` bytes. With a threshold of 0, the compressed
    /// form can be the longer one. The frame holds both forms until it is dropped.
    ///
    /// ```
    /// use deeperhub_protocol::deflate::{Config, Deflater, negotiate};
    /// use deeperhub_protocol::frame::Frame;
    ///
    /// let config = Config::default();
    /// let params = negotiate(&config, [&b"permessage-deflate"[..]])?.expect("the offer is acceptable");
    /// let mut deflater = Deflater::new(&config);
    ///
    /// let frame = Frame::text(&"all the same ".repeat(100));
    /// assert!(frame.for_receiver(&mut deflater, params).len() < 50);
    /// let frame = Frame::text("short");
    /// assert_eq!(frame.for_receiver(&mut deflater, params).as_bytes(), frame.as_bytes());
    /// # Ok::<(), deeperhub_protocol::handshake::Refusal>(())
    /// ```
    #[cfg(feature = "deflate")]
    pub fn for_receiver(&self, deflater: &mut Deflater, params: Params) -> &Self {
        if !params.fits_window(self.len()) {
            return self;
        }
        let compressed = self.0.deflated.get_or_init(|| match &self.0.source {
            Source::Own(bytes) => compress(deflater, bytes).map(Self::from_own_bytes),
            Source::ForkOf(frame) => {
                let compress = || compress(deflater, frame.own_bytes()).map(Self::from_own_bytes);
                frame.0.deflated.get_or_init(compress).as_ref().map(Self::fork)
            }
            Source::Shared(content) => {
                let compress = || {
                    let bytes = compress(deflater, content.as_bytes())?;
                    Some(Arc::new(Content::new(bytes, 0, false)))
                };
                content.deflated.get_or_init(compress).clone().map(Self::from_content)
            }
        });
        compressed.as_ref().unwrap_or(self)
    }

    fn encode(opcode: u8, payload: &[u8]) -> Self {
        let header = encode::header_len(payload.len());
        Self::encode_with(header + payload.len(), |out| encode::write_frame(out, opcode, payload))
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self::from_content(Arc::new(Content::new(bytes, 0, false)))
    }

    #[inline]
    pub(super) fn from_content(content: Arc<Content>) -> Self {
        Self::from_source(Source::Shared(content))
    }

    /// Creates a frame of one allocation besides its bytes, for a delivery that no history keeps.
    #[inline]
    pub(crate) fn from_own_bytes(bytes: Vec<u8>) -> Self {
        Self::from_source(Source::Own(bytes))
    }

    #[inline]
    fn from_source(source: Source) -> Self {
        Self(Arc::new(Handle {
            source,
            #[cfg(feature = "deflate")]
            deflated: OnceLock::new(),
        }))
    }
}

/// Compresses the payload of the frame in `bytes`. Returns `None` if `bytes` are not one whole
/// message, or if the deflater declines the payload.
#[cfg(feature = "deflate")]
fn compress(deflater: &mut Deflater, bytes: &[u8]) -> Option<Vec<u8>> {
    let frame = encode::server_frame(bytes).filter(|frame| frame.is_plain_message())?;
    let payload = bytes.get(frame.header_len..).filter(|payload| payload.len() == frame.payload_len)?;
    let deflated = deflater.deflate(payload)?;
    let mut bytes = Vec::with_capacity(encode::header_len(deflated.len()) + deflated.len());
    encode::write_rsv1(&mut bytes, frame.opcode(), deflated);
    Some(bytes)
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
    fn a_fork_shares_the_bytes_but_not_the_reference_count() {
        let frame = Frame::text("payload");
        let fork = frame.fork();
        assert_eq!(frame.as_bytes().as_ptr(), fork.as_bytes().as_ptr(), "the bytes are shared");
        assert!(!Arc::ptr_eq(&frame.0, &fork.0), "the count is not");
        drop(frame);
        assert_eq!(fork.as_bytes(), b"\x81\x07payload");
    }

    #[test]
    fn forks_of_a_frame_with_its_own_bytes_share_them() {
        let frame = Frame::from_own_bytes(b"\x81\x07payload".to_vec());
        let forks = [frame.fork(), frame.fork().fork(), frame.clone()];
        let bytes = frame.as_bytes().as_ptr();
        assert!(forks.iter().all(|fork| fork.as_bytes().as_ptr() == bytes));
        assert!(!Arc::ptr_eq(&frame.0, &forks[0].0) && !Arc::ptr_eq(&forks[0].0, &forks[1].0));
        drop(frame);
        for fork in forks {
            assert_eq!((fork.as_bytes(), fork.len()), (&b"\x81\x07payload"[..], 9));
            assert_eq!(fork.keep().as_bytes(), b"\x81\x07payload");
        }
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn forks_of_a_frame_with_its_own_bytes_are_compressed_once() {
        use crate::deflate::{Config, negotiate};

        let config = Config::default();
        let params = negotiate(&config, [&b"permessage-deflate"[..]]).unwrap().unwrap();
        let mut deflater = Deflater::new(&config);
        let text = Frame::text(&"all the same ".repeat(100));
        let frame = Frame::from_own_bytes(text.as_bytes().to_vec());
        let forks = [frame.fork(), frame.fork(), frame];
        let compressed = forks.each_ref().map(|fork| fork.for_receiver(&mut deflater, params).as_bytes());
        assert_eq!(compressed[0], text.for_receiver(&mut deflater, params).as_bytes());
        assert!(compressed.iter().all(|bytes| bytes.as_ptr() == compressed[0].as_ptr()));
        let short = Frame::from_own_bytes(Frame::text("short").as_bytes().to_vec());
        for fork in [short.fork(), short] {
            assert_eq!(fork.for_receiver(&mut deflater, params).as_bytes(), fork.as_bytes());
        }
    }

    #[test]
    fn encode_with_accepts_any_initial_capacity() {
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
    fn frames_are_send_and_sync() {
        fn check<T: Send + Sync>() {}
        check::<Frame>();
    }
}
