//! Reads and writes of a connection, for all of its users.

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tracing::info;

use super::handshake::{ServerInfo, refusal};
use super::request::{Message, Owned};
use super::stream::Stream;
use super::wakers::Wakers;
use super::wire::command;
use super::wire::operation::{self, Operation, Parsed, parse};
use crate::link::LinkError;

/// Size of the smallest reads.
const MIN_READ_BYTES: usize = 64 << 10;

/// Size of the largest reads. Reads grow while they fill their buffers.
const MAX_READ_BYTES: usize = 1 << 20;

/// Free part of a buffer that is worth a read.
const MIN_SPARE_BYTES: usize = 8 << 10;

/// Size of the received messages that nobody has taken, above which nothing is read.
const MAX_UNTAKEN_BYTES: usize = 1 << 20;

/// Maximum capacity of an empty buffer for writes; a larger one is freed.
const MAX_KEPT_BYTES: usize = 2 << 20;

/// State that the users of a connection share.
pub(super) struct Inner {
    pub(super) stream: RefCell<Stream>,
    pub(super) info: RefCell<ServerInfo>,
    pub(super) input: RefCell<Input>,
    pub(super) output: RefCell<Output>,
    /// Messages of subscriptions that nobody has taken, and their size.
    pub(super) received: RefCell<Vec<Bytes>>,
    pub(super) untaken_bytes: Cell<usize>,
    /// Numbers of sent pings and of their answers.
    pub(super) pings: Cell<u64>,
    pub(super) pongs: Cell<u64>,
    /// Number of the last subscription of each kind. Those whose messages the receiver takes have
    /// even numbers, those with an owner have odd ones.
    pub(super) last_sid: Cell<u64>,
    pub(super) last_owned_sid: Cell<u64>,
    pub(super) owned: RefCell<Owned>,
    /// Start of the subjects of answers, and the number of the last one.
    pub(super) inbox: String,
    pub(super) last_inbox: Cell<u64>,
    /// Makes an envelope of a message with headers, or drops it.
    pub(super) stamp: RefCell<Option<Stamp>>,
    /// Reasons of operations that the user may not do, if they do not end the connection.
    pub(super) violations: RefCell<Option<Vec<String>>>,
    /// Reason why the connection is of no use any more.
    pub(super) lost: RefCell<Option<LinkError>>,
    pub(super) wakers: Arc<Wakers>,
    /// Wakes all of `wakers`.
    pub(super) waker: Waker,
}

type Stamp = Box<dyn Fn(&Message) -> Option<Bytes>>;

pub(super) struct Input {
    buffer: BytesMut,
    /// Messages of the last read.
    messages: Vec<operation::Message>,
    /// Size of the next read.
    read_bytes: usize,
    /// Size of the operation that begins the buffer, as far as it is known.
    needed: usize,
}

#[derive(Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    /// Number of bytes that are written already.
    written: usize,
}

impl Input {
    /// `buffer` has the first bytes.
    pub(super) const fn new(buffer: BytesMut) -> Self {
        Self { buffer, messages: Vec::new(), read_bytes: MIN_READ_BYTES, needed: 0 }
    }
}

/// User of the connection that reads for all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// The receiver takes messages at once.
    Receiver,
    /// Others leave messages to the receiver.
    Other,
}

impl Inner {
    fn lost(&self) -> Result<(), LinkError> {
        self.lost.borrow().clone().map_or(Ok(()), Err)
    }

    /// Ends the connection. The first reason counts.
    pub(super) fn fail(&self, error: LinkError) {
        self.lost.borrow_mut().get_or_insert(error);
        self.waker.wake_by_ref();
    }

    /// Reads and writes for others until a condition holds.
    pub(super) fn poll_until(
        &self,
        cx: &mut Context<'_>,
        mut holds: impl FnMut() -> bool,
    ) -> Poll<Result<(), LinkError>> {
        if holds() {
            return Poll::Ready(Ok(()));
        }
        let result = self.poll_io(cx, Reader::Other);
        // The last answers may have come before the loss.
        if holds() {
            Poll::Ready(Ok(()))
        } else {
            result.map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending)
        }
    }

    /// Writes what waits, and reads what has arrived. Wakes the others if they may continue.
    pub(super) fn poll_io(&self, cx: &mut Context<'_>, reader: Reader) -> Result<(), LinkError> {
        self.lost()?;
        self.wakers.register(cx.waker());
        self.poll_io_with(&mut Context::from_waker(&self.waker), reader)
            .inspect_err(|error| self.fail(error.clone()))
    }

    fn poll_io_with(&self, cx: &mut Context<'_>, reader: Reader) -> Result<(), LinkError> {
        let pongs = self.pongs.get();
        self.poll_write(cx)?;
        loop {
            if self.untaken_bytes.get() >= MAX_UNTAKEN_BYTES || self.poll_read(cx)?.is_pending() {
                break;
            }
            let has_answers = self.take_operations()?;
            let has_messages = !self.received.borrow().is_empty();
            if has_answers || self.pongs.get() != pongs || (has_messages && reader == Reader::Other) {
                self.waker.wake_by_ref();
            }
            // The server waits for the answers to its pings.
            self.poll_write(cx)?;
            if has_messages && reader == Reader::Receiver {
                // It takes them before it comes back.
                break;
            }
        }
        Ok(())
    }

    /// Writes as much as the socket takes.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        let Output { bytes, written } = &mut *self.output.borrow_mut();
        if bytes.is_empty() {
            return Ok(());
        }
        let stream = &mut *self.stream.borrow_mut();
        while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(LinkError::new("the connection was lost")),
                Poll::Ready(Ok(length)) => *written += length,
                Poll::Ready(Err(error)) => return Err(lost_by(&error)),
                Poll::Pending => {
                    if *written > MAX_KEPT_BYTES {
                        bytes.drain(..*written);
                        *written = 0;
                    }
                    return Ok(());
                }
            }
        }
        match Pin::new(stream).poll_flush(cx) {
            Poll::Ready(Err(error)) => return Err(lost_by(&error)),
            // TLS has not passed everything on to the socket; this is tried again.
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => {}
        }
        *written = 0;
        bytes.clear();
        if bytes.capacity() > MAX_KEPT_BYTES {
            *bytes = Vec::new();
        }
        Ok(())
    }

    /// Reads once.
    fn poll_read(&self, cx: &mut Context<'_>) -> Result<Poll<()>, LinkError> {
        let Input { buffer, read_bytes, needed, .. } = &mut *self.input.borrow_mut();
        let missing = needed.saturating_sub(buffer.len());
        if buffer.capacity() - buffer.len() < missing.max(MIN_SPARE_BYTES) {
            buffer.reserve(missing.max(*read_bytes));
        }
        let spare = buffer.capacity() - buffer.len();
        let stream = &mut *self.stream.borrow_mut();
        let length = match pin!(stream.read_buf(buffer)).poll(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Err(error)) => return Err(lost_by(&error)),
            Poll::Ready(Ok(0)) => return Err(LinkError::new("the connection was lost")),
            Poll::Ready(Ok(length)) => length,
        };
        if length == spare {
            *read_bytes = (*read_bytes * 2).min(MAX_READ_BYTES);
        } else if length < *read_bytes / 4 {
            *read_bytes = (*read_bytes / 2).max(MIN_READ_BYTES);
        }
        Ok(Poll::Ready(()))
    }

    /// Takes all whole operations from the buffer. Returns `true` if there is something for those
    /// who wait for answers.
    pub(super) fn take_operations(&self) -> Result<bool, LinkError> {
        let Input { buffer, messages, needed, .. } = &mut *self.input.borrow_mut();
        let mut at = 0;
        let outcome = loop {
            if at == buffer.len() {
                *needed = 0;
                break Ok(());
            }
            let end = match parse(buffer, at) {
                Ok(Parsed::Whole(Operation::Message(message), end)) => {
                    messages.push(message);
                    end
                }
                Ok(Parsed::Whole(operation, end)) => match self.on_operation(&operation, buffer) {
                    Ok(()) => end,
                    Err(error) => break Err(error),
                },
                Ok(Parsed::Partial(bytes)) => {
                    *needed = bytes;
                    break Ok(());
                }
                Err(error) => break Err(LinkError::new(error)),
            };
            at = end;
        };
        let mut has_answers = self.violations.borrow().as_ref().is_some_and(|reasons| !reasons.is_empty());
        if messages.is_empty() {
            buffer.advance(at);
        } else {
            // The messages share the buffer, so none of them is copied.
            let bytes = buffer.split_to(at).freeze();
            let mut received = self.received.borrow_mut();
            let untaken = received.len();
            for message in messages.drain(..) {
                if message.sid % 2 == 0 && message.headers.is_empty() {
                    received.push(bytes.slice(message.payload));
                    continue;
                }
                let sid = message.sid;
                let message = Message {
                    subject: bytes.slice(message.subject),
                    reply: bytes.slice(message.reply),
                    headers: bytes.slice(message.headers),
                    payload: bytes.slice(message.payload),
                };
                if sid % 2 == 1 {
                    has_answers |= self.owned.borrow_mut().push(sid, message);
                } else if let Some(stamp) = &*self.stamp.borrow() {
                    received.extend(stamp(&message));
                } else {
                    received.push(message.payload);
                }
            }
            // Owners take their messages themselves, also where nobody receives others.
            if received.len() > untaken {
                self.untaken_bytes.set(self.untaken_bytes.get() + at);
            }
        }
        outcome.map(|()| has_answers)
    }

    /// Handles an operation that is no message.
    fn on_operation(&self, operation: &Operation, bytes: &[u8]) -> Result<(), LinkError> {
        let field = |range: &std::ops::Range<usize>| bytes.get(range.clone()).unwrap_or_default();
        match operation {
            Operation::Ping => command::pong(&mut self.output.borrow_mut().bytes),
            Operation::Pong => self.pongs.set(self.pongs.get() + 1),
            Operation::Info(range) => {
                let info = ServerInfo::parse(field(range))?;
                if info.is_lame_duck && !self.info.borrow().is_lame_duck {
                    info!("NATS server is about to stop");
                }
                *self.info.borrow_mut() = info;
            }
            // The server closes the connection after most errors. After the others, messages may be
            // missing.
            Operation::Error(range) => {
                let error = refusal(field(range));
                let is_violation = error.0.to_ascii_lowercase().contains("permissions violation");
                match &mut *self.violations.borrow_mut() {
                    Some(violations) if is_violation => violations.push(error.0),
                    _ => return Err(error),
                }
            }
            Operation::Ok | Operation::Message(_) => {}
        }
        Ok(())
    }
}

fn lost_by(error: &std::io::Error) -> LinkError {
    LinkError(format!("the connection was lost: {error}"))
}
