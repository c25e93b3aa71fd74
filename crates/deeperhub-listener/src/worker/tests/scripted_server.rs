//! The application of the scripted test: sessions that act, fail and panic as their clients ask, or
//! at random.

use std::collections::HashSet;
use std::future::Future;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};
use std::task::{self, Poll};
use std::time::Duration;

use deeperhub_protocol::frame::{self, Frame};
use deeperhub_protocol::handshake::{Refusal, Request};
use deeperhub_protocol::{CloseCode, CloseReason};
use fastrand::Rng;

use crate::arena::Multicast;
use crate::connections::{Connections, QueueFull};
use crate::session::{
    Accepted, Application, Closed, ConnectionKey, Context, Message, Peer, Session, WorkerState,
};

/// Bytes of a reply that is written in place if the socket takes it.
const LONG_REPLY_BYTES: u16 = 20_000;

/// Outcomes of the sessions of a script.
#[derive(Default)]
pub(super) struct Ends {
    /// Number of `on_close` calls of each session.
    pub(super) closes: Vec<u32>,
    /// Number of calls to sessions after their end. A panic would not fail the test, because the
    /// worker catches it.
    pub(super) late_calls: u32,
    /// Number of panics that the worker must count.
    pub(super) panics: u64,
    /// Open connections for which a call of `on_drained` is due.
    pub(super) awaiting_drain: HashSet<ConnectionKey>,
    /// Keys of the `on_drained` calls that the test has not checked yet.
    pub(super) drained: Vec<ConnectionKey>,
    /// Number of `on_drained` calls that nothing had requested.
    pub(super) unrequested_drains: u32,
    /// Number of frames that were refused because a queue was full.
    pub(super) full_queues: u64,
    /// `true` to leave sessions alone, so that the script comes to its end.
    pub(super) is_quiet: bool,
}

/// Shared state of the application and the test.
#[derive(Clone)]
pub(super) struct ScriptedServer {
    pub(super) ends: Arc<Mutex<Ends>>,
    random: Arc<Mutex<Rng>>,
}

impl ScriptedServer {
    pub(super) fn new(seed: u64) -> Self {
        Self { ends: Arc::default(), random: Arc::new(Mutex::new(Rng::with_seed(seed))) }
    }

    /// Returns `true` once in `times` calls, unless the sessions are left alone.
    fn once_in(&self, times: u32) -> bool {
        !self.ends.lock().unwrap().is_quiet && self.random.lock().unwrap().u32(0..times) == 0
    }

    /// Returns a number below `end`.
    fn below(&self, end: usize) -> usize {
        self.random.lock().unwrap().usize(0..end)
    }

    /// Panics once in `times` calls.
    fn panic_once_in(&self, times: u32) {
        if self.once_in(times) {
            self.panic();
        }
    }

    /// Panics without a message on standard error.
    fn panic(&self) -> ! {
        self.ends.lock().unwrap().panics += 1;
        resume_unwind(Box::new("this panic was injected by a test"))
    }
}

impl Application for ScriptedServer {
    type WorkerState = ScriptedWorkerState;
    type Session = ScriptedSession;

    fn worker_state(&self, _worker: usize) -> ScriptedWorkerState {
        ScriptedWorkerState { server: self.clone(), paused: Vec::new(), parked: Vec::new() }
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<ScriptedSession>, Refusal>> + 'static {
        let server = self.clone();
        let mut polls_left = server.below(3);
        let never_decides = server.once_in(15);
        std::future::poll_fn(move |cx| {
            if never_decides {
                return Poll::Pending;
            }
            if polls_left > 0 {
                polls_left -= 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            server.panic_once_in(30);
            if server.once_in(20) {
                return Poll::Ready(Err(Refusal::not_found()));
            }
            let mut ends = server.ends.lock().unwrap();
            ends.closes.push(0);
            let id = ends.closes.len() - 1;
            drop(ends);
            let session = ScriptedSession { id, server: server.clone() };
            Poll::Ready(Ok(Accepted { session, subprotocol: None }))
        })
    }

    fn is_ready(&self) -> bool {
        if self.once_in(5) {
            resume_unwind(Box::new("this panic was injected by a test"));
        }
        true
    }
}

pub(super) struct ScriptedWorkerState {
    server: ScriptedServer,
    /// Connections whose session has paused reading at some time.
    paused: Vec<ConnectionKey>,
    /// Connections whose session has parked them, with the text that they are sent meanwhile.
    parked: Vec<(ConnectionKey, String)>,
}

impl WorkerState<ScriptedSession> for ScriptedWorkerState {
    fn poll(
        &mut self,
        _cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, ScriptedSession>,
    ) -> Poll<()> {
        if self.server.ends.lock().unwrap().is_quiet || self.server.once_in(4) {
            for key in self.paused.drain(..) {
                connections.resume_reading(key);
            }
        }
        if self.server.ends.lock().unwrap().is_quiet || self.server.once_in(3) {
            for (key, text) in self.parked.drain(..) {
                // A long queue may have closed the connection.
                let _ = connections.send(key, &Frame::text(&text));
                connections.unpark(key);
            }
        }
        if self.server.once_in(4) {
            self.send_to_all(connections);
        }
        if self.server.once_in(25)
            && let Some(key) = connections.next_open(self.server.below(4) as u32)
        {
            connections.close(key, CloseReason::new(CloseCode::Disconnected, "at random"));
            // The frame is queued before the close frame. A second close has no effect.
            let _ = connections.send(key, &Frame::text("before the close"));
            connections.close(key, CloseReason::new(CloseCode::PolicyViolation, "the second"));
        }
        if self.server.once_in(2) {
            self.await_drain(self.server.below(10) as u32, connections);
        }
        Poll::Pending
    }

    fn on_drained(&mut self, key: ConnectionKey) {
        let mut ends = self.server.ends.lock().unwrap();
        ends.unrequested_drains += u32::from(!ends.awaiting_drain.remove(&key));
        ends.drained.push(key);
    }
}

impl ScriptedWorkerState {
    /// Sends the same frame to all connections, also to closing ones and to keys that do not exist.
    fn send_to_all(&self, connections: &mut Connections<'_, ScriptedSession>) {
        let len = [5, 300, 9000, 40_000][self.server.below(4)];
        let multicast = Multicast::new(Frame::text(&"m".repeat(len)));
        for _ in 0..=self.server.below(3) {
            for key in 0..10 {
                let session = match self.server.below(5) {
                    0 => connections.send(key, multicast.frame()),
                    1 => connections.send_multicast(key, &multicast),
                    2 if !connections.is_compressed(key) => {
                        let frames =
                            [multicast.frame().as_bytes(), Frame::text("encoded").as_bytes()].concat();
                        connections.send_encoded(key, &frames, 2)
                    }
                    _ => {
                        self.try_send(key, &multicast, connections);
                        connections.session(key)
                    }
                };
                if let Some(session) = session {
                    session.check_is_open();
                }
            }
        }
    }

    /// Tries to send a frame, and checks that this neither fills the queue nor closes the
    /// connection.
    fn try_send(
        &self,
        key: ConnectionKey,
        multicast: &Multicast,
        connections: &mut Connections<'_, ScriptedSession>,
    ) {
        let (before, max_bytes) = (connections.queued_bytes(key), connections.max_queue_bytes());
        let result = connections.try_send_multicast(key, multicast).map(|session| session.is_some());
        let after = connections.queued_bytes(key);
        match (before, result) {
            (None, result) => assert_eq!(result, Ok(false)),
            (Some(_), Ok(true)) => assert!(after.is_some_and(|after| after <= max_bytes), "{after:?}"),
            (Some(_), Ok(false)) => assert!(multicast.frame().len() > max_bytes, "a slow consumer"),
            (Some(before), Err(QueueFull)) => {
                assert!(after.is_some_and(|after| after <= before), "{before} {after:?}");
                self.server.ends.lock().unwrap().full_queues += 1;
                if self.server.once_in(2) {
                    self.await_drain(key, connections);
                }
            }
        }
    }

    /// Requests a call of `on_drained`, also for connections that are not open.
    fn await_drain(&self, key: ConnectionKey, connections: &mut Connections<'_, ScriptedSession>) {
        connections.notify_when_drained(key);
        if connections.queued_bytes(key).is_some() {
            self.server.ends.lock().unwrap().awaiting_drain.insert(key);
        }
    }
}

/// Session that echoes texts, except for those that make it act otherwise.
pub(super) struct ScriptedSession {
    id: usize,
    server: ScriptedServer,
}

impl ScriptedSession {
    /// Counts a call after the session's end.
    fn check_is_open(&self) {
        let mut ends = self.server.ends.lock().unwrap();
        ends.late_calls += u32::from(ends.closes[self.id] > 0);
    }

    /// Closes, pauses, parks, replies, panics, or does nothing.
    fn act_at_random(&self, cx: &mut Context<'_, ScriptedWorkerState>) {
        self.check_is_open();
        self.server.panic_once_in(100);
        if self.server.once_in(50) {
            cx.close(CloseReason::new(CloseCode::Disconnected, "in a callback"));
        }
        if self.server.once_in(20) {
            self.pause(cx);
        }
        if self.server.once_in(30) {
            self.park("after a callback", cx);
        }
        if self.server.once_in(5) {
            cx.send(&Frame::text("from a callback"));
        }
        self.server.panic_once_in(100);
    }

    fn pause(&self, cx: &mut Context<'_, ScriptedWorkerState>) {
        let key = cx.key();
        cx.worker().paused.push(key);
        cx.pause_reading();
    }

    /// Parks the connection. A text is sent later, before the replies to later messages.
    fn park(&self, text: &str, cx: &mut Context<'_, ScriptedWorkerState>) {
        let key = cx.key();
        cx.worker().parked.push((key, text.to_owned()));
        cx.park();
    }
}

impl Session for ScriptedSession {
    type WorkerState = ScriptedWorkerState;

    fn on_open(&mut self, cx: &mut Context<'_, ScriptedWorkerState>) {
        self.act_at_random(cx);
    }

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, ScriptedWorkerState>) {
        self.check_is_open();
        match message {
            Message::Text("panic") => self.server.panic(),
            Message::Text("pause") => self.pause(cx),
            Message::Text("close") => cx.close(CloseReason::new(CloseCode::Disconnected, "as asked")),
            Message::Text("close and pause") => {
                self.pause(cx);
                cx.close(CloseReason::new(CloseCode::PolicyViolation, "as asked"));
            }
            Message::Text("long") => cx.reply_around(&[b'r'; LONG_REPLY_BYTES as usize], |out| {
                out.extend([0x81, 126]);
                out.extend(LONG_REPLY_BYTES.to_be_bytes());
                Some(out.len())
            }),
            Message::Text("expensive") => cx.charge(usize::MAX),
            Message::Text(text) if text.starts_with("number ") && self.server.once_in(5) => {
                self.park(text, cx);
                if self.server.once_in(4) {
                    self.pause(cx);
                }
            }
            Message::Text(text) => cx.reply(|out| frame::write_text(out, text)),
            Message::Binary(bytes) => cx.reply(|out| frame::write_binary(out, bytes)),
        }
    }

    fn admit_control_frame(&mut self, cx: &mut Context<'_, ScriptedWorkerState>) -> bool {
        self.check_is_open();
        if self.server.once_in(20) {
            cx.close(CloseReason::new(CloseCode::PolicyViolation, "too many control frames"));
        }
        self.server.panic_once_in(50);
        !self.server.once_in(3)
    }

    fn held_bytes(&self, _key: ConnectionKey, _worker: &ScriptedWorkerState) -> usize {
        self.check_is_open();
        if self.server.once_in(2) { 5000 } else { 0 }
    }

    fn on_tick(&mut self, cx: &mut Context<'_, ScriptedWorkerState>) {
        self.act_at_random(cx);
    }

    fn on_server_close(&mut self, _reason: &CloseReason, _retry: Option<Duration>, out: &mut Vec<u8>) {
        self.check_is_open();
        frame::write_text(out, "goodbye");
        self.server.panic_once_in(10);
    }

    fn on_close(&mut self, key: ConnectionKey, _closed: &Closed, worker: &mut ScriptedWorkerState) {
        let mut ends = self.server.ends.lock().unwrap();
        ends.closes[self.id] += 1;
        ends.awaiting_drain.remove(&key);
        drop(ends);
        worker.paused.retain(|&paused| paused != key);
        worker.parked.retain(|&(parked, _)| parked != key);
        self.server.panic_once_in(10);
    }
}
