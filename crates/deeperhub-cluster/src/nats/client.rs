//! A connection to a server that several futures of one thread share.
//!
//! There is no task behind it: whoever waits for something reads and writes for all. What arrives
//! for others is kept for them, and they are woken.
//!
//! The server handles what a connection sends in order. So the answer to a `PING` confirms
//! everything before it, and no message needs a confirmation of its own. Every second, the driver
//! sends a heartbeat and waits for its confirmation, so a lost connection is noticed without
//! further pings.

use std::cell::{Cell, RefCell, RefMut};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tracing::info;

use super::handshake::{Connected, ServerInfo, refusal};
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

/// A connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Client(Rc<Inner>);

struct Inner {
    stream: RefCell<Stream>,
    info: RefCell<ServerInfo>,
    input: RefCell<Input>,
    output: RefCell<Output>,
    /// Messages of subscriptions that nobody has taken, and their size.
    received: RefCell<Vec<Bytes>>,
    untaken_bytes: Cell<usize>,
    /// Numbers of sent pings and of their answers.
    pings: Cell<u64>,
    pongs: Cell<u64>,
    /// Number of the last subscription of each kind. Those whose messages the receiver takes have
    /// even numbers, those with an owner have odd ones.
    last_sid: Cell<u64>,
    last_owned_sid: Cell<u64>,
    owned: RefCell<Owned>,
    /// Start of the subjects of answers, and the number of the last one.
    inbox: String,
    last_inbox: Cell<u64>,
    /// Makes an envelope of a message with headers, or drops it.
    stamp: RefCell<Option<Stamp>>,
    /// Reasons of operations that the user may not do, if they do not end the connection.
    violations: RefCell<Option<Vec<String>>>,
    /// Reason why the connection is of no use any more.
    lost: RefCell<Option<LinkError>>,
    wakers: Arc<Wakers>,
    /// Wakes all of `wakers`.
    waker: Waker,
}

type Stamp = Box<dyn Fn(&Message) -> Option<Bytes>>;

struct Input {
    buffer: BytesMut,
    /// Messages of the last read.
    messages: Vec<operation::Message>,
    /// Size of the next read.
    read_bytes: usize,
    /// Size of the operation that begins the buffer, as far as it is known.
    needed: usize,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// Number of bytes that are written already.
    written: usize,
}

/// Who reads for all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// The receiver takes messages at once.
    Receiver,
    /// Others leave messages to the receiver.
    Other,
}

impl Client {
    /// `inbox` is the start of the subjects of answers.
    pub(super) fn new(connected: Connected, inbox: &str) -> Self {
        let Connected { stream, info, read } = connected;
        let wakers = Arc::new(Wakers::default());
        let client = Self(Rc::new(Inner {
            stream: RefCell::new(stream),
            info: RefCell::new(info),
            input: RefCell::new(Input {
                buffer: read,
                messages: Vec::new(),
                read_bytes: MIN_READ_BYTES,
                needed: 0,
            }),
            output: RefCell::default(),
            received: RefCell::default(),
            untaken_bytes: Cell::new(0),
            pings: Cell::new(0),
            pongs: Cell::new(0),
            last_sid: Cell::new(0),
            last_owned_sid: Cell::new(1),
            owned: RefCell::default(),
            // Answers to another connection of this name must not be taken for those to this one.
            inbox: format!("{inbox}.{:x}", getrandom::u64().unwrap_or_default()),
            last_inbox: Cell::new(0),
            stamp: RefCell::new(None),
            violations: RefCell::new(None),
            lost: RefCell::new(None),
            waker: Waker::from(Arc::clone(&wakers)),
            wakers,
        }));
        // Bytes that came with the server's acceptance.
        if let Err(error) = client.0.take_operations() {
            client.0.fail(error);
        }
        client
    }

    /// Returns the maximum size of a message, in bytes.
    pub(crate) fn max_payload(&self) -> usize {
        self.0.info.borrow().max_payload
    }

    /// Returns the version of the server.
    pub(crate) fn server_version(&self) -> String {
        self.0.info.borrow().version.clone()
    }

    /// Makes envelopes of messages with headers. Without this call, their headers are ignored.
    pub(crate) fn stamp_with(&self, stamp: impl Fn(&Message) -> Option<Bytes> + 'static) {
        *self.0.stamp.borrow_mut() = Some(Box::new(stamp));
    }

    /// Lets operations that the user may not do fail alone, instead of the connection.
    pub(crate) fn keep_violations(&self) {
        *self.0.violations.borrow_mut() = Some(Vec::new());
    }

    /// Waits for an operation that the user may not do, and returns the server's reason.
    pub(crate) async fn violation(&self) -> Result<String, LinkError> {
        let mut found = None;
        poll_fn(|cx| {
            self.poll_until(cx, || {
                found = found.take().or_else(|| self.0.violations.borrow_mut().as_mut()?.pop());
                found.is_some()
            })
        })
        .await?;
        found.ok_or_else(|| LinkError::new("the connection was lost"))
    }

    pub(super) fn owned(&self) -> RefMut<'_, Owned> {
        self.0.owned.borrow_mut()
    }

    pub(super) fn next_owned_sid(&self) -> u64 {
        let sid = self.0.last_owned_sid.get() + 2;
        self.0.last_owned_sid.set(sid);
        sid
    }

    /// Returns a subject for answers that is used once.
    pub(super) fn next_inbox(&self) -> String {
        let number = self.0.last_inbox.get() + 1;
        self.0.last_inbox.set(number);
        format!("{}.{number}", self.0.inbox)
    }

    /// Reads and writes for others until a condition holds.
    pub(super) fn poll_until(
        &self,
        cx: &mut Context<'_>,
        holds: impl FnMut() -> bool,
    ) -> Poll<Result<(), LinkError>> {
        self.0.poll_until(cx, holds)
    }

    /// Appends operations, which are written when the call ends or soon after.
    pub(crate) fn write(&self, append: impl FnOnce(&mut Vec<u8>)) -> Result<(), LinkError> {
        if let Some(error) = &*self.0.lost.borrow() {
            return Err(error.clone());
        }
        append(&mut self.0.output.borrow_mut().bytes);
        let result = self.0.poll_write(&mut Context::from_waker(&self.0.waker));
        result.inspect_err(|error| self.0.fail(error.clone()))
    }

    /// Subscribes to a subject, and returns the number of the subscription.
    pub(crate) fn subscribe(&self, subject: &str) -> Result<u64, LinkError> {
        let sid = self.0.last_sid.get() + 2;
        self.0.last_sid.set(sid);
        self.write(|out| command::subscribe(out, subject, sid))?;
        Ok(sid)
    }

    /// Appends operations and a request for the confirmation of all operations so far. Returns the
    /// number of the confirmation.
    pub(crate) fn write_and_ping(&self, append: impl FnOnce(&mut Vec<u8>)) -> Result<u64, LinkError> {
        self.write(|out| {
            append(out);
            command::ping(out);
        })?;
        let number = self.0.pings.get() + 1;
        self.0.pings.set(number);
        Ok(number)
    }

    /// Waits for a confirmation.
    pub(crate) async fn confirmed(&self, number: u64) -> Result<(), LinkError> {
        poll_fn(|cx| self.0.poll_until(cx, || self.0.pongs.get() >= number)).await
    }

    /// Waits until the server has handled everything that was written before.
    pub(crate) async fn confirm(&self) -> Result<(), LinkError> {
        let number = self.write_and_ping(|_| {})?;
        self.confirmed(number).await
    }

    /// Waits for messages of subscriptions, and adds them to a batch in the server's order. Messages
    /// that came before the loss of the connection are returned before the error.
    pub(crate) async fn receive(&self, batch: &mut Vec<Bytes>) -> Result<(), LinkError> {
        poll_fn(|cx| {
            let inner = &*self.0;
            let has_messages = !inner.received.borrow().is_empty();
            let result = if has_messages { Ok(()) } else { inner.poll_io(cx, Reader::Receiver) };
            let mut received = inner.received.borrow_mut();
            if received.is_empty() {
                return result.map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending);
            }
            inner.untaken_bytes.set(0);
            if batch.is_empty() {
                std::mem::swap(batch, &mut received);
            } else {
                batch.append(&mut received);
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

impl Inner {
    fn lost(&self) -> Result<(), LinkError> {
        self.lost.borrow().clone().map_or(Ok(()), Err)
    }

    /// Ends the connection. The first reason counts.
    fn fail(&self, error: LinkError) {
        self.lost.borrow_mut().get_or_insert(error);
        self.waker.wake_by_ref();
    }

    /// Reads and writes for others until a condition holds.
    fn poll_until(
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
    fn poll_io(&self, cx: &mut Context<'_>, reader: Reader) -> Result<(), LinkError> {
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
    fn poll_write(&self, cx: &mut Context<'_>) -> Result<(), LinkError> {
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
    fn take_operations(&self) -> Result<bool, LinkError> {
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
            for message in messages.drain(..) {
                if message.sid % 2 == 0 && message.headers.is_empty() {
                    received.push(bytes.slice(message.payload));
                    continue;
                }
                let sid = message.sid;
                let message = Message {
                    subject: bytes.slice(message.subject),
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
            self.untaken_bytes.set(self.untaken_bytes.get() + at);
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
