//! One connection: from the handshake to the close.

use std::io;

use deeperhub_protocol::deflate::{History, Inflater};
use deeperhub_protocol::frame::{Incoming, MessageKind};
use mio::event::Event;
use serde::Deserialize;

use super::end::End;
use super::local::{Local, READ_SIZE, Receiver};
use super::plan::{Pace, Place, Role};
use super::transport::Transport;
use super::wire::{BINARY, CLOSE, CONTINUATION, Header, PING, PONG, TEXT, write};

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Connecting,
    Handshaking,
    /// Upgraded; the welcome has not come.
    Welcoming,
    /// The answer to `subscribe` has not come.
    Subscribing,
    Open,
    /// Our close frame is sent.
    Closing,
    Gone,
}

/// What the socket has not taken beyond which nothing more is sent.
const BLOCKED: usize = 256 * 1024;
/// No hub's message has more bytes: what has is not one, and is not to fill our memory.
const MAX_MESSAGE: usize = 1 << 28;

/// A connection of the run.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) place: Place,
    pub(super) stage: Stage,
    transport: Option<Transport>,
    deflate: Option<Box<Compressed>>,
    /// When connecting began, in nanoseconds since the epoch.
    pub(super) began: u64,
    receiver: Receiver,
    /// Whether nothing is read.
    paused: bool,
    /// A frame of which a part is missing.
    unread: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
    fragments: Option<Box<Fragments>>,
    /// Messages that it sent.
    pub(super) sent: u64,
    /// How many it sends at most.
    pub(super) quota: u64,
    /// Deliveries that a publisher's messages should give.
    pub(super) expected: u64,
    /// Messages that were answered and are to be followed by others, in a closed loop of echoes.
    owed: u32,
}

/// What was agreed on compression: what the server compresses with is in its messages, or in those before.
#[derive(Debug)]
struct Compressed {
    history: Option<History>,
}

/// A message of which fragments are missing.
#[derive(Debug, Default)]
struct Fragments {
    compressed: bool,
    bytes: Vec<u8>,
}

impl Connection {
    /// A connection that is being made.
    pub(super) fn new(place: Place, transport: Transport, local: &mut Local<'_>) -> Self {
        let plan = local.plan;
        let topic = if place.role == Role::Echo { place.number } else { plan.topic_of(place.number) };
        let keeps_accounts = plan.scenario.has_messages() && place.role != Role::Publisher;
        Self {
            place,
            stage: Stage::Connecting,
            transport: Some(transport),
            deflate: None,
            began: local.shared.now(),
            receiver: Receiver {
                role: place.role,
                topic,
                accounts: if keeps_accounts { local.open_accounts() } else { 0 },
            },
            paused: false,
            unread: Vec::new(),
            unsent: Vec::new(),
            fragments: None,
            sent: 0,
            quota: if matches!(place.role, Role::Echo | Role::Publisher) {
                plan.quota(place.number)
            } else {
                0
            },
            expected: 0,
            owed: 0,
        }
    }

    /// A connection of which nothing has been begun.
    pub(super) fn missing(place: Place) -> Self {
        Self {
            place,
            stage: Stage::Connecting,
            transport: None,
            deflate: None,
            began: 0,
            receiver: Receiver { role: place.role, topic: 0, accounts: 0 },
            paused: false,
            unread: Vec::new(),
            unsent: Vec::new(),
            fragments: None,
            sent: 0,
            quota: 0,
            expected: 0,
            owed: 0,
        }
    }

    /// The topic that it subscribes to; in `echo` its stream.
    pub(super) fn topic(&self) -> u32 {
        self.receiver.topic
    }

    /// Where its accounts are.
    pub(super) fn accounts(&self) -> usize {
        self.receiver.accounts
    }

    /// Whether so much waits to be sent that nothing should be added.
    pub(super) fn is_blocked(&self) -> bool {
        self.unsent.len() > BLOCKED
    }

    /// Whether it has more messages to send.
    pub(super) fn is_sender(&self) -> bool {
        self.stage == Stage::Open && self.sent < self.quota
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Frees all that it has. A socket that is closed leaves the poll by itself.
    pub(super) fn forget(&mut self) {
        self.stage = Stage::Gone;
        self.transport = None;
        self.deflate = None;
        self.fragments = None;
        self.unread = Vec::new();
        self.unsent = Vec::new();
    }

    /// Does what an event of its socket makes possible.
    ///
    /// # Errors
    ///
    /// The end of the connection; the caller forgets it.
    #[inline]
    pub(super) fn on_event(&mut self, event: &Event, local: &mut Local<'_>) -> Result<(), End> {
        match self.stage {
            Stage::Gone => return Ok(()),
            Stage::Connecting => {
                if !self.is_connected()? {
                    return Ok(());
                }
                self.stage = Stage::Handshaking;
                local.output.extend_from_slice(local.handshake.request());
                self.send(local)?;
            }
            _ if event.is_writable() => self.flush()?,
            _ => {}
        }
        let ends = event.is_read_closed() || event.is_error();
        if self.paused {
            if !ends {
                return Ok(());
            }
            let now = local.shared.now();
            if let Some(start) = local.shared.start() {
                local.tally.slow_seen.record(now.saturating_sub(start));
            }
            self.paused = false;
        }
        if event.is_readable() || ends { self.read(local, ends) } else { Ok(()) }
    }

    fn is_connected(&mut self) -> Result<bool, End> {
        let Some(transport) = &mut self.transport else { return Ok(false) };
        let socket = transport.socket();
        if let Some(error) = socket.take_error().map_err(End::Connect)? {
            return Err(End::Connect(error));
        }
        match socket.peer_addr() {
            Ok(_) => Ok(true),
            // An event of the socket before it was connected.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(End::Connect(error)),
        }
    }

    /// Reads again after a pause.
    pub(super) fn resume(&mut self, local: &mut Local<'_>) -> Result<(), End> {
        self.paused = false;
        self.read(local, true)
    }

    /// Reads what there is. `to_the_end`: the end is near, so that a short read is not taken for all there is.
    fn read(&mut self, local: &mut Local<'_>, to_the_end: bool) -> Result<(), End> {
        let mut input = std::mem::take(&mut local.input);
        let result = self.read_into(&mut input, local, to_the_end);
        local.input = input;
        result
    }

    #[inline]
    fn read_into(&mut self, input: &mut Vec<u8>, local: &mut Local<'_>, to_the_end: bool) -> Result<(), End> {
        while !self.paused {
            let Some(transport) = &mut self.transport else { return Ok(()) };
            let kept = self.unread.len();
            if kept + READ_SIZE / 2 > input.len() {
                input.resize((kept + READ_SIZE).next_power_of_two(), 0);
            }
            let Some(room) = input.get_mut(kept..) else { return Ok(()) };
            let read = match transport.read(room) {
                Ok(0) => return Err(if self.stage == Stage::Closing { End::Finished } else { End::Cut }),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if self.stage == Stage::Closing => return Err(End::Finished),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(End::Cut),
                Err(error) => return Err(End::Io(error)),
            };
            let emptied = read < room.len() && transport.short_read_empties() && !to_the_end;
            if let Some(start) = input.get_mut(..kept) {
                start.copy_from_slice(&self.unread);
            }
            self.unread.clear();

            let bytes = input.get(..kept + read).unwrap_or_default();
            let now = local.shared.now();
            let delivered = local.delivered_in_round();
            let used = self.take_in(bytes, now, local);
            local.end_read(read, delivered, now);
            let rest = bytes.get(used?..).unwrap_or_default();
            if rest.is_empty() {
                if self.unread.capacity() > READ_SIZE {
                    self.unread = Vec::new();
                }
            } else {
                self.unread.extend_from_slice(rest);
            }
            if self.owed > 0 {
                self.follow_up(now, local)?;
            }
            if emptied {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes in whole frames and returns how many bytes they were.
    #[inline]
    fn take_in(&mut self, bytes: &[u8], now: u64, local: &mut Local<'_>) -> Result<usize, End> {
        let mut at = 0;
        if self.stage == Stage::Handshaking {
            let Some(answer) = local.handshake.answer(bytes)? else { return Ok(0) };
            at = answer.len;
            self.deflate = answer
                .deflate
                .map(|agreed| Box::new(Compressed { history: (!agreed.forgets).then(History::new) }));
            self.stage = Stage::Welcoming;
        }
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(header) = Header::parse(rest).map_err(End::Protocol)? else { break };
            let Some(payload) = rest.get(header.len..header.len + header.payload_len) else { break };
            at += header.len + header.payload_len;
            match header {
                Header { opcode: TEXT, fin: true, compressed: false, .. } if self.fragments.is_none() => {
                    self.on_message(payload, now, local)?;
                }
                Header { opcode: TEXT | BINARY | CONTINUATION, .. } => {
                    self.on_unusual_frame(header, payload, now, local)?;
                }
                _ => self.on_control(header.opcode, payload, local)?,
            }
        }
        Ok(at)
    }

    fn on_unusual_frame(
        &mut self,
        header: Header,
        payload: &[u8],
        now: u64,
        local: &mut Local<'_>,
    ) -> Result<(), End> {
        if (header.opcode == CONTINUATION) != self.fragments.is_some() {
            return Err(End::Protocol("fragments out of order"));
        }
        let mut message = self.fragments.take().unwrap_or_default();
        message.compressed |= header.compressed;
        if !header.fin || !message.bytes.is_empty() {
            message.bytes.extend_from_slice(payload);
        }
        if message.bytes.len() > MAX_MESSAGE {
            return Err(End::Protocol("a message of more than 256 MiB"));
        }
        if !header.fin {
            self.fragments = Some(message);
            return Ok(());
        }
        let whole = if message.bytes.is_empty() { payload } else { &message.bytes };
        if !message.compressed {
            return self.on_message(whole, now, local);
        }
        let Some(deflate) = &mut self.deflate else {
            return Err(End::Protocol("a compressed message without agreement"));
        };
        let mut inflater = std::mem::replace(&mut local.inflater, Inflater::new());
        let decoded = inflater.decode(deflate.history.as_mut(), MAX_MESSAGE, MessageKind::Text, whole);
        let result = match decoded {
            Ok(Incoming::Text(text)) => self.on_message(text.as_bytes(), now, local),
            _ => Err(End::Protocol("a message that cannot be decompressed")),
        };
        local.inflater = inflater;
        result
    }

    fn on_control(&mut self, opcode: u8, payload: &[u8], local: &mut Local<'_>) -> Result<(), End> {
        match opcode {
            PING => {
                local.tally.pings += 1;
                let key = local.keys.key();
                write(&mut local.output, PONG, payload, key);
                self.send(local)
            }
            CLOSE => {
                if self.stage == Stage::Closing {
                    return Err(End::Finished);
                }
                let key = local.keys.key();
                write(&mut local.output, CLOSE, payload.get(..2).unwrap_or_default(), key);
                // It is over, whether or not our answer gets there.
                let _ = self.send(local);
                Err(End::Closed(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))))
            }
            _ => Ok(()),
        }
    }

    #[inline]
    fn on_message(&mut self, message: &[u8], now: u64, local: &mut Local<'_>) -> Result<(), End> {
        if self.stage >= Stage::Open
            && let Some(stamp) = local.finder.find(message)
        {
            local.enter(self.receiver, stamp, now);
            self.owed += u32::from(self.place.role == Role::Echo);
            return Ok(());
        }
        self.on_other_message(message, now, local)
    }

    /// Whatever is neither a delivery nor an echo.
    #[cold]
    fn on_other_message(&mut self, message: &[u8], now: u64, local: &mut Local<'_>) -> Result<(), End> {
        let Ok(message) = serde_json::from_slice::<Said>(message) else {
            local.tally.error("message_not_understood");
            return Ok(());
        };
        match (message.kind.as_str(), self.stage) {
            ("welcome", Stage::Welcoming) if self.place.role.subscribes() => {
                let key = local.keys.key();
                local.outgoing.write_subscribe(&mut local.output, self.topic(), key);
                self.stage = Stage::Subscribing;
                self.send(local)
            }
            ("welcome", Stage::Welcoming) | ("subscribed", Stage::Subscribing) => {
                self.stage = Stage::Open;
                self.paused = self.place.role == Role::SlowReader;
                local.tally.connect.record(now.saturating_sub(self.began));
                Ok(())
            }
            ("error", Stage::Welcoming | Stage::Subscribing) => Err(End::Rejected(message.data.error_code())),
            ("error", _) => {
                local.tally.error(&format!("error_{}", message.data.error_code()));
                self.on_refused_message(local);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Goes on without a message that the server refused.
    fn on_refused_message(&mut self, local: &mut Local<'_>) {
        match self.place.role {
            Role::Echo => {
                local.expect_less(1);
                self.owed += 1;
            }
            Role::Publisher => {
                let topic = local.plan.stream_of(self.place.number, self.sent.saturating_sub(1));
                let deliveries = local.shared.subscribers(local.plan.topic_of(topic));
                local.expect_less(deliveries);
                self.expected = self.expected.saturating_sub(deliveries);
            }
            _ => {}
        }
    }

    /// Sends as many echoes as came back, if it is a closed loop.
    #[inline]
    fn follow_up(&mut self, now: u64, local: &mut Local<'_>) -> Result<(), End> {
        let owed = std::mem::take(&mut self.owed);
        if now >= local.send_until || !matches!(local.plan.pace, Pace::InFlight(_)) {
            return Ok(());
        }
        for _ in 0..owed {
            self.write_echo(now, now, local);
        }
        self.send(local)
    }

    /// Appends an echo to the output, if it has any left to send.
    #[inline]
    pub(super) fn write_echo(&mut self, time: u64, now: u64, local: &mut Local<'_>) {
        if self.is_sender() {
            self.sent += 1;
            local.write_message(self.topic(), 0, time, now, 1);
        }
    }

    /// Appends a publish to the output, if it has any left to send.
    #[inline]
    pub(super) fn write_publish(&mut self, time: u64, now: u64, local: &mut Local<'_>) {
        if self.is_sender() {
            let stream = local.plan.stream_of(self.place.number, self.sent);
            let topic = local.plan.topic_of(stream);
            let deliveries = local.shared.subscribers(topic);
            self.sent += 1;
            self.expected += deliveries;
            local.write_message(stream, topic, time, now, deliveries);
        }
    }

    /// Writes the output, and keeps what the socket does not take.
    #[inline]
    pub(super) fn send(&mut self, local: &mut Local<'_>) -> Result<(), End> {
        let written = match &mut self.transport {
            Some(transport) if self.unsent.is_empty() => write_all(transport, &local.output),
            _ => Ok(0),
        };
        if let Ok(written) = written {
            self.unsent.extend_from_slice(local.output.get(written..).unwrap_or_default());
        }
        // Also after an error: the next connection is not to send what was meant for this one.
        local.output.clear();
        written.map(drop)
    }

    /// Writes what the socket did not take before.
    #[inline]
    fn flush(&mut self) -> Result<(), End> {
        let Some(transport) = &mut self.transport else { return Ok(()) };
        transport.flush().map_err(End::Io)?;
        if self.unsent.is_empty() {
            return Ok(());
        }
        let written = write_all(transport, &self.unsent)?;
        self.unsent.drain(..written);
        if self.unsent.is_empty() && self.unsent.capacity() > BLOCKED {
            self.unsent = Vec::new();
        }
        Ok(())
    }

    /// Sends a close frame; the connection ends when the server answers it.
    pub(super) fn close(&mut self, local: &mut Local<'_>) -> Result<(), End> {
        if self.stage != Stage::Open {
            return Ok(());
        }
        self.stage = Stage::Closing;
        let key = local.keys.key();
        write(&mut local.output, CLOSE, &1000_u16.to_be_bytes(), key);
        self.send(local)
    }

    /// Sends a pong that nobody asked for, which a server passes over (RFC 6455 section 5.5.3).
    pub(super) fn probe(&mut self, local: &mut Local<'_>) -> Result<(), End> {
        let key = local.keys.key();
        write(&mut local.output, PONG, b"", key);
        self.send(local)
    }
}

/// Writes until all is written or the socket takes no more, and returns how much it took.
#[inline]
fn write_all(transport: &mut Transport, bytes: &[u8]) -> Result<usize, End> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match transport.write(rest) {
            Ok(taken) => written += taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(End::Io(error)),
        }
    }
    Ok(written)
}

/// What of a message of the server's matters here.
#[derive(Deserialize)]
struct Said {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: SaidData,
}

#[derive(Default, Deserialize)]
struct SaidData {
    /// Of an error a text, of a goodbye a number.
    #[serde(default)]
    code: serde_json::Value,
}

impl SaidData {
    /// The code of an error, cut to what a code may be: it becomes a key of the report.
    fn error_code(&self) -> String {
        let code = self.code.as_str().unwrap_or("without_code");
        code.chars()
            .filter(|character| character.is_ascii_alphanumeric() || *character == '_')
            .take(40)
            .collect()
    }
}
