//! One connection: from the handshake to the close.

mod receive;

use std::io;

use deeperhub_protocol::deflate::History;
use mio::event::Event;

use crate::disconnect_reason::DisconnectReason;
use crate::frame::{CLOSE, PONG, write_frame};
use crate::scenario::{ConnectionSpec, LoadModel, Role};
use crate::thread_state::{Receiver, ThreadState};
use crate::transport::Transport;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Connecting,
    Handshaking,
    /// Upgraded; the welcome has not come.
    AwaitingWelcome,
    /// The answer to `subscribe` has not come.
    Subscribing,
    Open,
    /// Our close frame is sent.
    Closing,
    Closed,
}

/// What the socket has not taken beyond which nothing more is sent.
const MAX_UNSENT_BYTES: usize = 256 * 1024;

/// A connection of the run.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) spec: ConnectionSpec,
    pub(crate) stage: Stage,
    transport: Option<Transport>,
    deflate: Option<Box<ServerCompression>>,
    /// When connecting connect_started, in nanoseconds since the epoch.
    pub(crate) connect_started: u64,
    receiver: Receiver,
    /// Whether nothing is read.
    paused: bool,
    /// A frame of which a part is missing.
    unread: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
    fragments: Option<Box<FragmentedMessage>>,
    /// Messages that it sent.
    pub(crate) sent: u64,
    /// How many it sends at most.
    pub(crate) max_messages: u64,
    /// Deliveries that a publisher's messages should give.
    pub(crate) expected: u64,
    /// Messages that were answered and are to be followed by others, in a closed loop of echoes.
    echoes_due: u32,
}

/// What was agreed on compression: what the server compresses with is in its messages, or in those before.
#[derive(Debug)]
struct ServerCompression {
    history: Option<History>,
}

/// A message of which fragments are missing.
#[derive(Debug, Default)]
struct FragmentedMessage {
    compressed: bool,
    bytes: Vec<u8>,
}

impl Connection {
    /// A connection that is being made.
    pub(crate) fn new(spec: ConnectionSpec, transport: Transport, state: &mut ThreadState<'_>) -> Self {
        let plan = state.plan;
        let topic = if spec.role == Role::Echo { spec.number } else { plan.topic_of(spec.number) };
        let is_receiver = plan.scenario.has_messages() && spec.role != Role::Publisher;
        Self {
            spec,
            stage: Stage::Connecting,
            transport: Some(transport),
            deflate: None,
            connect_started: state.shared.now(),
            receiver: Receiver {
                role: spec.role,
                topic,
                first_tracker: if is_receiver { state.add_trackers() } else { 0 },
            },
            paused: false,
            unread: Vec::new(),
            unsent: Vec::new(),
            fragments: None,
            sent: 0,
            max_messages: if matches!(spec.role, Role::Echo | Role::Publisher) {
                plan.max_messages(spec.number)
            } else {
                0
            },
            expected: 0,
            echoes_due: 0,
        }
    }

    /// A connection of which nothing has been begun.
    pub(crate) fn placeholder(spec: ConnectionSpec) -> Self {
        Self {
            spec,
            stage: Stage::Connecting,
            transport: None,
            deflate: None,
            connect_started: 0,
            receiver: Receiver { role: spec.role, topic: 0, first_tracker: 0 },
            paused: false,
            unread: Vec::new(),
            unsent: Vec::new(),
            fragments: None,
            sent: 0,
            max_messages: 0,
            expected: 0,
            echoes_due: 0,
        }
    }

    /// The topic that it subscribes to; in `echo` its stream.
    pub(crate) fn topic(&self) -> u32 {
        self.receiver.topic
    }

    /// Where its accounts are.
    pub(crate) fn first_tracker(&self) -> usize {
        self.receiver.first_tracker
    }

    /// Whether so much waits to be sent that nothing should be added.
    pub(crate) fn is_blocked(&self) -> bool {
        self.unsent.len() > MAX_UNSENT_BYTES
    }

    /// Whether it has more messages to send.
    pub(crate) fn is_sender(&self) -> bool {
        self.stage == Stage::Open && self.sent < self.max_messages
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Frees all that it has. A socket that is closed leaves the poll by itself.
    pub(crate) fn release(&mut self) {
        self.stage = Stage::Closed;
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
    /// The end of the connection; the caller server_no_context_takeover it.
    #[inline]
    pub(crate) fn on_event(
        &mut self,
        event: &Event,
        state: &mut ThreadState<'_>,
    ) -> Result<(), DisconnectReason> {
        match self.stage {
            Stage::Closed => return Ok(()),
            Stage::Connecting => {
                if !self.is_connected()? {
                    return Ok(());
                }
                self.stage = Stage::Handshaking;
                state.output.extend_from_slice(state.handshake.request());
                self.send(state)?;
            }
            _ if event.is_writable() => self.flush()?,
            _ => {}
        }
        let ends = event.is_read_closed() || event.is_error();
        if self.paused {
            if !ends {
                return Ok(());
            }
            let now = state.shared.now();
            if let Some(start) = state.shared.start() {
                state.counters.slow_disconnect_times.record(now.saturating_sub(start));
            }
            self.paused = false;
        }
        if event.is_readable() || ends { self.read(state, ends) } else { Ok(()) }
    }

    fn is_connected(&mut self) -> Result<bool, DisconnectReason> {
        let Some(transport) = &mut self.transport else { return Ok(false) };
        let socket = transport.socket();
        if let Some(error) = socket.take_error().map_err(DisconnectReason::ConnectFailed)? {
            return Err(DisconnectReason::ConnectFailed(error));
        }
        match socket.peer_addr() {
            Ok(_) => Ok(true),
            // An event of the socket before it was connected.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(DisconnectReason::ConnectFailed(error)),
        }
    }

    /// Sends as many echoes as came back, if it is a closed loop.
    #[inline]
    fn send_next_echoes(&mut self, now: u64, state: &mut ThreadState<'_>) -> Result<(), DisconnectReason> {
        let echoes_due = std::mem::take(&mut self.echoes_due);
        if now >= state.send_until || !matches!(state.plan.load, LoadModel::ClosedLoop(_)) {
            return Ok(());
        }
        for _ in 0..echoes_due {
            self.write_echo(now, now, state);
        }
        self.send(state)
    }

    /// Appends an echo to the output, if it has any left to send.
    #[inline]
    pub(crate) fn write_echo(&mut self, time: u64, now: u64, state: &mut ThreadState<'_>) {
        if self.is_sender() {
            self.sent += 1;
            state.write_message(self.topic(), 0, time, now, 1);
        }
    }

    /// Appends a publish to the output, if it has any left to send.
    #[inline]
    pub(crate) fn write_publish(&mut self, time: u64, now: u64, state: &mut ThreadState<'_>) {
        if self.is_sender() {
            let stream = state.plan.stream_of(self.spec.number, self.sent);
            let topic = state.plan.topic_of(stream);
            let deliveries = state.shared.subscribers(topic);
            self.sent += 1;
            self.expected += deliveries;
            state.write_message(stream, topic, time, now, deliveries);
        }
    }

    /// Writes the output, and keeps what the socket does not take.
    #[inline]
    pub(crate) fn send(&mut self, state: &mut ThreadState<'_>) -> Result<(), DisconnectReason> {
        let written = match &mut self.transport {
            Some(transport) if self.unsent.is_empty() => write_all(transport, &state.output),
            _ => Ok(0),
        };
        if let Ok(written) = written {
            self.unsent.extend_from_slice(state.output.get(written..).unwrap_or_default());
        }
        // Also after an error: the next connection is not to send what was meant for this one.
        state.output.clear();
        written.map(drop)
    }

    /// Writes what the socket did not take before.
    #[inline]
    fn flush(&mut self) -> Result<(), DisconnectReason> {
        let Some(transport) = &mut self.transport else { return Ok(()) };
        transport.flush().map_err(DisconnectReason::Io)?;
        if self.unsent.is_empty() {
            return Ok(());
        }
        let written = write_all(transport, &self.unsent)?;
        self.unsent.drain(..written);
        if self.unsent.is_empty() && self.unsent.capacity() > MAX_UNSENT_BYTES {
            self.unsent = Vec::new();
        }
        Ok(())
    }

    /// Sends a close frame; the connection ends when the server answers it.
    pub(crate) fn close(&mut self, state: &mut ThreadState<'_>) -> Result<(), DisconnectReason> {
        if self.stage != Stage::Open {
            return Ok(());
        }
        self.stage = Stage::Closing;
        let key = state.keys.next_key();
        write_frame(&mut state.output, CLOSE, &1000_u16.to_be_bytes(), key);
        self.send(state)
    }

    /// Sends a pong that nobody asked for, which a server passes over (RFC 6455 section 5.5.3).
    pub(crate) fn probe(&mut self, state: &mut ThreadState<'_>) -> Result<(), DisconnectReason> {
        let key = state.keys.next_key();
        write_frame(&mut state.output, PONG, b"", key);
        self.send(state)
    }
}

/// Writes until all is written or the socket takes no more, and returns how much it took.
#[inline]
fn write_all(transport: &mut Transport, bytes: &[u8]) -> Result<usize, DisconnectReason> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match transport.write(rest) {
            Ok(taken) => written += taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DisconnectReason::Io(error)),
        }
    }
    Ok(written)
}
