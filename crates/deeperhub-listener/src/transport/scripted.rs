//! A byte stream in memory whose input, output and failures a test scripts.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use deeperhub_uring::SendProgress;

/// One end of a byte stream. The transport of a connection and the test that plays its peer hold
/// clones of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scripted(Rc<RefCell<Stream>>);

#[derive(Debug, Default)]
struct Stream {
    input: VecDeque<u8>,
    /// `true` if the peer has ended its input.
    is_ended: bool,
    /// `true` if the peer has reset the connection.
    is_reset: bool,
    /// Number of operations that will be interrupted by a signal.
    interruptions: u32,
    /// Bytes that the socket takes before it is full.
    room: usize,
    output: Vec<u8>,
    /// Bytes of `output` that the peer has read.
    acknowledged: usize,
    is_shut_down: bool,
    is_written_after_shutdown: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Stream {
    fn is_readable(&self) -> bool {
        !self.input.is_empty() || self.is_ended || self.is_reset
    }

    fn is_writable(&self) -> bool {
        self.room > 0 || self.is_reset
    }

    /// Wakes the wakers of what has become possible.
    fn wake(&mut self) {
        if self.is_readable()
            && let Some(waker) = self.reader.take()
        {
            waker.wake();
        }
        if self.is_writable()
            && let Some(waker) = self.writer.take()
        {
            waker.wake();
        }
    }

    fn check(&mut self) -> io::Result<()> {
        if self.is_reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.interruptions > 0 {
            self.interruptions -= 1;
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}

/// Actions of the peer.
impl Scripted {
    /// Creates a stream whose socket takes `room` bytes until the peer reads.
    pub(crate) fn new(room: usize) -> Self {
        let stream = Self::default();
        stream.0.borrow_mut().room = room;
        stream
    }

    fn change(&self, change: impl FnOnce(&mut Stream)) {
        let mut stream = self.0.borrow_mut();
        change(&mut stream);
        stream.wake();
    }

    /// Sends bytes to the connection, unless the peer has shut down its sending side.
    pub(crate) fn send(&self, bytes: &[u8]) {
        self.change(|stream| {
            if !stream.is_ended {
                stream.input.extend(bytes);
            }
        });
    }

    /// Shuts down the peer's sending side.
    pub(crate) fn end_input(&self) {
        self.change(|stream| stream.is_ended = true);
    }

    /// Resets the connection.
    pub(crate) fn reset(&self) {
        self.change(|stream| stream.is_reset = true);
    }

    /// Lets a signal interrupt the next operations.
    pub(crate) fn interrupt(&self, times: u32) {
        self.change(|stream| stream.interruptions = times);
    }

    /// Reads at most `max_bytes`, which makes room for as many.
    pub(crate) fn receive(&self, max_bytes: usize) {
        self.change(|stream| {
            let read = max_bytes.min(stream.output.len() - stream.acknowledged);
            stream.acknowledged += read;
            stream.room += read;
        });
    }

    /// Reads everything, and makes room for `bytes` more.
    pub(crate) fn make_room(&self, bytes: usize) {
        self.receive(usize::MAX);
        self.change(|stream| stream.room += bytes);
    }

    /// Returns all bytes that the connection has sent.
    pub(crate) fn output(&self) -> Vec<u8> {
        self.0.borrow().output.clone()
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.0.borrow().is_shut_down
    }

    /// Returns `true` if the peer sent bytes that were not read.
    pub(crate) fn has_input(&self) -> bool {
        !self.0.borrow().input.is_empty()
    }

    /// Returns `true` if the socket takes bytes.
    pub(crate) fn has_room(&self) -> bool {
        self.0.borrow().room > 0
    }

    /// Returns `true` if the connection tried to send after it had shut down its sending side.
    pub(crate) fn is_written_after_shutdown(&self) -> bool {
        self.0.borrow().is_written_after_shutdown
    }

    /// Returns `true` if only the peer still holds the stream.
    pub(crate) fn is_dropped(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}

/// Operations of the connection.
impl Scripted {
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.0.borrow_mut();
        stream.check()?;
        if stream.input.is_empty() {
            return if stream.is_ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let len = buffer.len().min(stream.input.len());
        for (to, from) in buffer.iter_mut().zip(stream.input.drain(..len)) {
            *to = from;
        }
        Ok(len)
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    pub(super) fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut stream = self.0.borrow_mut();
        stream.is_written_after_shutdown |= stream.is_shut_down;
        stream.check()?;
        if stream.room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut written = 0;
        for slice in slices {
            let len = slice.len().min(stream.room);
            stream.output.extend_from_slice(&slice[..len]);
            stream.room -= len;
            written += len;
        }
        Ok(written)
    }

    pub(super) fn clear_readiness(&self) -> bool {
        true
    }

    pub(super) fn arm_read(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.0.borrow_mut();
        if stream.is_readable() {
            return Poll::Ready(Ok(()));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn arm_write(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.0.borrow_mut();
        if stream.is_writable() {
            return Poll::Ready(Ok(()));
        }
        stream.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn progress(&self) -> io::Result<SendProgress> {
        let stream = self.0.borrow();
        let is_outstanding = stream.acknowledged < stream.output.len();
        Ok(SendProgress { acknowledged: stream.acknowledged as u64, is_outstanding })
    }

    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        let mut stream = self.0.borrow_mut();
        stream.is_shut_down = true;
        if stream.is_reset { Err(io::ErrorKind::NotConnected.into()) } else { Ok(()) }
    }
}
