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
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::handshake::Connected;
use super::io::{Inner, Input, Reader};
use super::request::{Message, Owned};
use super::wakers::Wakers;
use super::wire::command;
use crate::link::LinkError;

/// A connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Client(Rc<Inner>);

impl Client {
    /// `inbox` is the start of the subjects of answers.
    pub(super) fn new(connected: Connected, inbox: &str) -> Self {
        let Connected { stream, info, read } = connected;
        let wakers = Arc::new(Wakers::default());
        let client = Self(Rc::new(Inner {
            stream: RefCell::new(stream),
            info: RefCell::new(info),
            input: RefCell::new(Input::new(read)),
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

    /// Returns the name of the running server. It has another one after a restart.
    pub(crate) fn server_id(&self) -> String {
        self.0.info.borrow().server_id.clone()
    }

    /// Makes envelopes of messages with headers. Without this call, their headers are ignored.
    pub(crate) fn stamp_with(&self, stamp: impl Fn(&Message) -> Option<Bytes> + 'static) {
        *self.0.stamp.borrow_mut() = Some(Box::new(stamp));
    }

    /// Lets operations that the user may not do fail alone, instead of the connection.
    pub(crate) fn keep_violations(&self) {
        *self.0.violations.borrow_mut() = Some(Vec::new());
    }

    /// Returns the server's reasons for operations that the user may not do.
    pub(crate) fn take_violations(&self) -> Vec<String> {
        self.0.violations.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default()
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

    /// Reads and writes until the connection is lost, and returns the reason.
    pub(crate) async fn lost(&self) -> LinkError {
        let result = poll_fn(|cx| self.0.poll_until(cx, || false)).await;
        result.err().unwrap_or_else(|| LinkError::new("the connection was lost"))
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
