//! Parking at random messages changes neither the order nor the content of what clients get.

use std::collections::VecDeque;
use std::future::Future;
use std::task::{self, Poll};

use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::handshake::{Refusal, Request};
use fastrand::Rng;

use super::fixture::{Fixture, UPGRADE};
use crate::config::Config;
use crate::connections::Connections;
use crate::handshake::ClientSource;
use crate::session::{Accepted, Application, ConnectionKey, Context, Message, Peer, Session, WorkerState};
use crate::transport::Scripted;

/// Number of random conversations.
const CONVERSATIONS: u64 = 400;

/// Bytes of an answer that clients get compressed.
const LONG_ANSWER_BYTES: usize = 2000;

/// Room of a socket that is never full.
const UNLIMITED: usize = 1 << 22;

/// Application whose sessions answer each message at once, or park and answer it later.
struct LateAnswers {
    seed: u64,
    /// A session parks at one message in so many; at none if this is 0.
    parks_once_in: u32,
}

struct LateWorkerState {
    random: Rng,
    parks_once_in: u32,
    /// Connections that are parked, with the answers to the messages at which they are.
    parked: VecDeque<(ConnectionKey, Frame)>,
    answered_late: usize,
}

struct LateSession {
    messages: u32,
}

impl Application for LateAnswers {
    type WorkerState = LateWorkerState;
    type Session = LateSession;

    fn worker_state(&self, _worker: usize) -> LateWorkerState {
        LateWorkerState {
            random: Rng::with_seed(self.seed),
            parks_once_in: self.parks_once_in,
            parked: VecDeque::new(),
            answered_late: 0,
        }
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<LateSession>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: LateSession { messages: 0 }, subprotocol: None }))
    }
}

impl WorkerState<LateSession> for LateWorkerState {
    fn poll(
        &mut self,
        _cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, LateSession>,
    ) -> Poll<()> {
        while !self.parked.is_empty() && self.random.bool() {
            let Some((key, answer)) = self.parked.pop_front() else { break };
            assert!(connections.send(key, &answer).is_some(), "a parked connection has no session");
            assert!(connections.unpark(key), "the connection is not parked");
            self.answered_late += 1;
        }
        Poll::Pending
    }
}

impl Session for LateSession {
    type WorkerState = LateWorkerState;

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, LateWorkerState>) {
        let text = match message {
            Message::Text(text) => format!("{} text {text}", self.messages),
            Message::Binary(bytes) => format!("{} binary {bytes:?}", self.messages),
        };
        self.messages += 1;
        let is_long = self.messages.is_multiple_of(7);
        let answer = Frame::text(&format!("{text}{}", " ".repeat(usize::from(is_long) * LONG_ANSWER_BYTES)));
        let (key, worker) = (cx.key(), cx.worker());
        if worker.parks_once_in > 0 && worker.random.u32(0..worker.parks_once_in) == 0 {
            worker.parked.push_back((key, answer));
            cx.park();
        } else {
            cx.send(&answer);
        }
    }
}

/// Returns a client's frame, masked at random.
fn masked(first_byte: u8, payload: &[u8], random: &mut Rng) -> Vec<u8> {
    let mask = random.u32(..).to_be_bytes();
    let len = u16::try_from(payload.len()).unwrap();
    let mut out = vec![first_byte];
    match len {
        0..126 => out.push(0x80 | len as u8),
        _ => {
            out.push(0x80 | 126);
            out.extend(len.to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// Returns the bytes of a random message, of a part of one, or of a ping.
fn random_message(number: u32, is_compressed: bool, random: &mut Rng) -> Vec<u8> {
    let text = format!("{number}{}", "x".repeat([0, 3, 200, 9000][random.usize(0..4)]));
    let payload = text.as_bytes();
    // A compressed message of one stored block (RFC 1951 section 3.2.4).
    let stored = || {
        let len = payload.len() as u16;
        [&[0][..], &len.to_le_bytes(), &(!len).to_le_bytes(), payload, &[0]].concat()
    };
    match random.u32(0..12) {
        0..2 => masked(0x89, &payload[..payload.len().min(100)], random),
        2 => masked(0x82, payload, random),
        3..6 => {
            let (first, second) = payload.split_at(random.usize(0..=payload.len()));
            let ping = masked(0x89, b"between", random);
            [masked(0x01, first, random), ping, masked(0x80, second, random)].concat()
        }
        6..8 if is_compressed => masked(0xc1, &stored(), random),
        8..10 if is_compressed => {
            let stored = stored();
            let (first, second) = stored.split_at(random.usize(0..=stored.len()));
            [masked(0x41, first, random), masked(0x80, second, random)].concat()
        }
        _ => masked(0x81, payload, random),
    }
}

/// Input of a client, and the pieces in which it arrives.
struct Conversation {
    head: String,
    pieces: Vec<Vec<u8>>,
    /// Bytes that the client's kernel takes before the client reads.
    room: usize,
    round_bytes: usize,
}

impl Conversation {
    fn new(random: &mut Rng) -> Self {
        let is_compressed = random.bool();
        let extension = "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
        let head = if is_compressed { UPGRADE.replace("\r\n\r\n", extension) } else { UPGRADE.to_owned() };
        let mut input: Vec<u8> =
            (0..random.u32(1..60)).flat_map(|number| random_message(number, is_compressed, random)).collect();
        let mut pieces = Vec::new();
        while !input.is_empty() {
            let longest = [50, 1000, 100_000][random.usize(0..3)];
            pieces.push(input.drain(..random.usize(1..=longest).min(input.len())).collect());
        }
        Self {
            head,
            pieces,
            room: [200, 5000, UNLIMITED][random.usize(0..3)],
            round_bytes: [20_000, 1 << 20][random.usize(0..2)],
        }
    }

    /// Runs the conversation until the connection ends. Returns what the client got, and the number
    /// of late answers.
    fn run(&self, application: LateAnswers) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, usize) {
        let mut config = Config::default().round_bytes(self.round_bytes);
        config.compression.client_context_takeover = true;
        config.limits.max_queue_bytes = 1 << 24;
        let mut fixture = Fixture::new(application, config);
        let mut tester = fixture.worker();
        let stream = Scripted::new(self.room);
        tester.connect(&stream, ClientSource::Peer);
        // The request and the first messages arrive together.
        stream.send(self.head.as_bytes());
        for piece in &self.pieces {
            stream.send(piece);
            tester.round();
            stream.receive(usize::MAX);
        }
        stream.end_input();
        for _ in 0..10_000 {
            if stream.is_dropped() {
                break;
            }
            tester.round();
            stream.receive(usize::MAX);
        }
        assert!(stream.is_dropped(), "the connection does not end");
        assert!(tester.worker.table.unread.is_empty());
        let output = stream.output();
        let head_end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        let (pongs, answers) =
            frames(&output[head_end..]).into_iter().partition(|frame| frame.first() == Some(&0x8a));
        (answers, pongs, tester.worker.ctx.worker_state.answered_late)
    }
}

/// Splits a server's output into frames.
fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let len = match *bytes {
            [_, 126, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
            [_, 127, a, b, c, d, e, f, g, h, ..] => {
                10 + usize::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h])).unwrap()
            }
            [_, len, ..] => 2 + usize::from(len),
            _ => panic!("a frame is cut"),
        };
        let (frame, rest) = bytes.split_at(len);
        frames.push(frame.to_vec());
        bytes = rest;
    }
    frames
}

#[test]
fn parking_changes_neither_order_nor_content_of_the_answers() {
    let mut answered_late = 0;
    for seed in 0..CONVERSATIONS {
        let mut random = Rng::with_seed(seed);
        let conversation = Conversation::new(&mut random);
        let (answers, pongs, _) = conversation.run(LateAnswers { seed, parks_once_in: 0 });
        let parks_once_in = random.u32(1..6);
        let (late_answers, late_pongs, count) = conversation.run(LateAnswers { seed, parks_once_in });
        assert!(answers == late_answers, "the answers differ with seed {seed}");
        // Pongs overtake answers while the socket is full, and one may answer several pings.
        let is_ordered = conversation.room == UNLIMITED;
        assert!(!is_ordered || pongs == late_pongs, "the pongs differ with seed {seed}");
        answered_late += count;
    }
    assert!(answered_late > 1000, "{answered_late} late answers");
}
