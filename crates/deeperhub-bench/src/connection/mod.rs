//! One connection, from connecting to the close.

mod receive;
mod recover;

use std::io;

use deeperhub_protocol::deflate::History;
use mio::event::Event;

use crate::disconnect_reason::DisconnectReason;
use crate::frame::{CLOSE, PONG, write_frame};
use crate::scenario::{ConnectionSpec, LoadModel, Role};
use crate::thread_state::{Receiver, ThreadState};
use crate::transport::Transport;

/// The state of a connection, in the order in which it advances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Connecting,
    Handshaking,
    /// Upgraded; waits for `welcome`.
    AwaitingWelcome,
    /// Waits for the answer to `subscribe`.
    Subscribing,
    Open,
    /// Has sent a close frame; waits for the server's close frame.
    Closing,
    Closed,
}

/// Unsent bytes above which a connection sends no more messages. Limits memory use.
const MAX_UNSENT_BYTES: usize = 256 * 1024;

/// A connection of the run.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) spec: ConnectionSpec,
    pub(crate) stage: Stage,
    transport: Option<Transport>,
    deflate: Option<Box<ServerCompression>>,
    /// Time at which connecting started, in nanoseconds since the epoch of the run.
    pub(crate) connect_started: u64,
    receiver: Receiver,
    /// The client's return, once it was cut.
    returning: Option<Return>,
    /// `true` if the server has answered the echo that follows a publisher's messages.
    pub(crate) is_synchronized: bool,
    /// `true` if the connection does not read.
    paused: bool,
    /// Bytes of an incomplete frame.
    unread: Vec<u8>,
    /// Bytes that did not fit into the socket's send buffer.
    unsent: Vec<u8>,
    fragments: Option<Box<FragmentedMessage>>,
    /// Messages sent.
    pub(crate) sent: u64,
    /// Number of messages after which the connection stops sending.
    pub(crate) max_messages: u64,
    /// Deliveries that this publisher's messages should cause.
    pub(crate) expected: u64,
    /// Messages that an echo connection sends next in a closed loop: one for each echo received.
    echoes_due: u32,
}

/// A client that was cut and returns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Return {
    /// Time at which the client is due, in nanoseconds since the epoch of the run.
    pub(crate) due: u64,
    /// Index of the first of its trackers.
    pub(crate) first_tracker: usize,
    /// Messages of the replay that have not arrived, of all topics.
    replay_left: u64,
    pub(crate) is_live: bool,
}

/// State for decompressing the server's messages.
#[derive(Debug)]
struct ServerCompression {
    /// Earlier messages, or `None` if the server compresses each message on its own.
    history: Option<History>,
}

/// The fragments of an incomplete message that have arrived.
#[derive(Debug, Default)]
struct FragmentedMessage {
    compressed: bool,
    bytes: Vec<u8>,
}

impl Connection {
    /// Creates a connection whose socket is connecting. `returning` is the return of a client that
    /// was cut.
    pub(crate) fn new(
        spec: ConnectionSpec,
        transport: Transport,
        returning: Option<Return>,
        state: &mut ThreadState<'_>,
    ) -> Self {
        let plan = state.plan;
        let topic = match spec.role {
            Role::Echo => spec.number,
            Role::Returner => plan.first_topic_of(spec.number),
            _ => plan.topic_of(spec.number),
        };
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
                first_tracker: match returning {
                    Some(returning) => returning.first_tracker,
                    None if spec.role == Role::Returner => state.add_recovery_trackers(),
                    None if is_receiver => state.add_trackers(),
                    None => 0,
                },
            },
            returning,
            is_synchronized: false,
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

    /// Creates a connection without a socket, for a slot that is opened later.
    pub(crate) fn placeholder(spec: ConnectionSpec) -> Self {
        Self {
            spec,
            stage: Stage::Connecting,
            transport: None,
            deflate: None,
            connect_started: 0,
            receiver: Receiver { role: spec.role, topic: 0, first_tracker: 0 },
            returning: None,
            is_synchronized: false,
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

    /// Returns the topic of a subscriber, or the stream of an echo connection.
    pub(crate) fn topic(&self) -> u32 {
        self.receiver.topic
    }

    /// Returns the topic and the trackers of a receiver.
    pub(crate) fn receiver(&self) -> Receiver {
        self.receiver
    }

    /// Returns the index of the first sequence tracker.
    pub(crate) fn first_tracker(&self) -> usize {
        self.receiver.first_tracker
    }

    /// Returns `true` if the unsent bytes exceed their limit, so no more messages may be added.
    pub(crate) fn is_blocked(&self) -> bool {
        self.unsent.len() > MAX_UNSENT_BYTES
    }

    /// Returns `true` if the connection is open and has messages left to send.
    pub(crate) fn is_sender(&self) -> bool {
        self.stage == Stage::Open && self.sent < self.max_messages
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Frees the connection's resources. The drop of the socket also removes it from the poll.
    pub(crate) fn release(&mut self) {
        self.stage = Stage::Closed;
        self.transport = None;
        self.deflate = None;
        self.fragments = None;
        self.unread = Vec::new();
        self.unsent = Vec::new();
    }

    /// Processes an event of the socket.
    ///
    /// # Errors
    ///
    /// The reason why the connection ended. The caller releases the connection.
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

    /// Returns `true` if the socket is connected.
    fn is_connected(&mut self) -> Result<bool, DisconnectReason> {
        let Some(transport) = &mut self.transport else { return Ok(false) };
        let socket = transport.socket();
        if let Some(error) = socket.take_error().map_err(DisconnectReason::ConnectFailed)? {
            return Err(DisconnectReason::ConnectFailed(error));
        }
        match socket.peer_addr() {
            Ok(_) => Ok(true),
            // The event arrived before the socket was connected.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(DisconnectReason::ConnectFailed(error)),
        }
    }

    /// Sends one message for each echo that arrived, if the load is a closed loop.
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

    /// Appends an echo to the output if the connection has messages left to send.
    #[inline]
    pub(crate) fn write_echo(&mut self, time: u64, now: u64, state: &mut ThreadState<'_>) {
        if self.is_sender() {
            self.sent += 1;
            state.write_message(self.topic(), 0, time, now, 1);
        }
    }

    /// Appends a publish to the output if the connection has messages left to send.
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

    /// Writes the output. Stores bytes that do not fit into the socket's send buffer as unsent.
    #[inline]
    pub(crate) fn send(&mut self, state: &mut ThreadState<'_>) -> Result<(), DisconnectReason> {
        let written = match &mut self.transport {
            Some(transport) if self.unsent.is_empty() => write_all(transport, &state.output),
            _ => Ok(0),
        };
        if let Ok(written) = written {
            self.unsent.extend_from_slice(state.output.get(written..).unwrap_or_default());
        }
        // The buffer is cleared also after an error, because the next connection uses it, too.
        state.output.clear();
        written.map(drop)
    }

    /// Writes unsent bytes.
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

    /// Sends a close frame. The connection ends with the server's answer.
    pub(crate) fn close(&mut self, state: &mut ThreadState<'_>) -> Result<(), DisconnectReason> {
        if self.stage != Stage::Open {
            return Ok(());
        }
        self.stage = Stage::Closing;
        let key = state.keys.next_key();
        write_frame(&mut state.output, CLOSE, &1000_u16.to_be_bytes(), key);
        self.send(state)
    }

    /// Sends an unsolicited pong, which servers ignore (RFC 6455 section 5.5.3).
    pub(crate) fn probe(&mut self, state: &mut ThreadState<'_>) -> Result<(), DisconnectReason> {
        let key = state.keys.next_key();
        write_frame(&mut state.output, PONG, b"", key);
        self.send(state)
    }
}

/// Writes until all bytes are written or the socket's send buffer is full. Returns the number of
/// written bytes.
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
