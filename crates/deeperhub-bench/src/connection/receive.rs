//! Reads frames and messages.

use std::io;

use deeperhub_protocol::deflate::{History, Inflater};
use deeperhub_protocol::frame::{Incoming, MessageKind};
use serde::Deserialize;

use super::{Connection, ServerCompression, Stage};
use crate::disconnect_reason::DisconnectReason;
use crate::frame::{BINARY, CLOSE, CONTINUATION, FrameHeader, PING, PONG, TEXT, write_frame};
use crate::scenario::Role;
use crate::thread_state::{READ_BUFFER_BYTES, ThreadState};

/// Maximum bytes of a message, more than any hub sends. Limits memory use.
const MAX_MESSAGE_BYTES: usize = 1 << 28;

impl Connection {
    /// Resumes reading after a pause.
    pub(crate) fn resume(&mut self, state: &mut ThreadState<'_>) -> Result<(), DisconnectReason> {
        self.paused = false;
        self.read(state, true)
    }

    /// Reads all available bytes. If `to_the_end`, reads on after a short read, because the end of
    /// the stream may follow.
    pub(super) fn read(
        &mut self,
        state: &mut ThreadState<'_>,
        to_the_end: bool,
    ) -> Result<(), DisconnectReason> {
        let mut input = std::mem::take(&mut state.input);
        let result = self.read_into(&mut input, state, to_the_end);
        state.input = input;
        result
    }

    #[inline]
    fn read_into(
        &mut self,
        input: &mut Vec<u8>,
        state: &mut ThreadState<'_>,
        to_the_end: bool,
    ) -> Result<(), DisconnectReason> {
        while !self.paused {
            let Some(transport) = &mut self.transport else { return Ok(()) };
            let kept = self.unread.len();
            if kept + READ_BUFFER_BYTES / 2 > input.len() {
                input.resize((kept + READ_BUFFER_BYTES).next_power_of_two(), 0);
            }
            let Some(room) = input.get_mut(kept..) else { return Ok(()) };
            let read = match transport.read(room) {
                Ok(0) => {
                    return Err(if self.stage == Stage::Closing {
                        DisconnectReason::ClosedByUs
                    } else {
                        DisconnectReason::Eof
                    });
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if self.stage == Stage::Closing => return Err(DisconnectReason::ClosedByUs),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(DisconnectReason::Eof);
                }
                Err(error) => return Err(DisconnectReason::Io(error)),
            };
            let is_empty = read < room.len() && transport.short_read_empties() && !to_the_end;
            if let Some(start) = input.get_mut(..kept) {
                start.copy_from_slice(&self.unread);
            }
            self.unread.clear();

            let bytes = input.get(..kept + read).unwrap_or_default();
            let now = state.shared.now();
            let delivered = state.pending_deliveries();
            let used = self.read_frames(bytes, now, state);
            state.count_read(read, delivered, now);
            let rest = bytes.get(used?..).unwrap_or_default();
            if rest.is_empty() {
                if self.unread.capacity() > READ_BUFFER_BYTES {
                    self.unread = Vec::new();
                }
            } else {
                self.unread.extend_from_slice(rest);
            }
            if self.echoes_due > 0 {
                self.send_next_echoes(now, state)?;
            }
            if is_empty {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Processes whole frames and returns their length.
    #[inline]
    fn read_frames(
        &mut self,
        bytes: &[u8],
        now: u64,
        state: &mut ThreadState<'_>,
    ) -> Result<usize, DisconnectReason> {
        let mut at = 0;
        if self.stage == Stage::Handshaking {
            let Some(response) = state.handshake.parse_response(bytes)? else { return Ok(0) };
            at = response.len;
            self.deflate = response.deflate.map(|agreed| {
                Box::new(ServerCompression {
                    history: (!agreed.server_no_context_takeover).then(History::new),
                })
            });
            self.stage = Stage::AwaitingWelcome;
        }
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(header) = FrameHeader::parse(rest).map_err(DisconnectReason::Protocol)? else { break };
            let Some(payload) = rest.get(header.len..header.len + header.payload_len) else { break };
            at += header.len + header.payload_len;
            match header {
                FrameHeader { opcode: TEXT, fin: true, compressed: false, .. }
                    if self.fragments.is_none() =>
                {
                    self.on_message(payload, now, state)?;
                }
                FrameHeader { opcode: TEXT | BINARY | CONTINUATION, .. } => {
                    self.on_unusual_frame(header, payload, now, state)?;
                }
                _ => self.on_control(header.opcode, payload, state)?,
            }
        }
        Ok(at)
    }

    /// Processes a frame that is a fragment, compressed or binary.
    fn on_unusual_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: u64,
        state: &mut ThreadState<'_>,
    ) -> Result<(), DisconnectReason> {
        if (header.opcode == CONTINUATION) != self.fragments.is_some() {
            return Err(DisconnectReason::Protocol("fragments out of order"));
        }
        let mut message = self.fragments.take().unwrap_or_default();
        message.compressed |= header.compressed;
        if !header.fin || !message.bytes.is_empty() {
            message.bytes.extend_from_slice(payload);
        }
        if message.bytes.len() > MAX_MESSAGE_BYTES {
            return Err(DisconnectReason::Protocol("message over 256 MiB"));
        }
        if !header.fin {
            self.fragments = Some(message);
            return Ok(());
        }
        let whole = if message.bytes.is_empty() { payload } else { &message.bytes };
        if !message.compressed {
            return self.on_message(whole, now, state);
        }
        let Some(deflate) = &mut self.deflate else {
            return Err(DisconnectReason::Protocol("compressed message without negotiation"));
        };
        let mut inflater = std::mem::replace(&mut state.inflater, Inflater::new());
        let decoded = inflater.decode(deflate.history.as_mut(), MAX_MESSAGE_BYTES, MessageKind::Text, whole);
        let result = match decoded {
            Ok(Incoming::Text(text)) => self.on_message(text.as_bytes(), now, state),
            _ => Err(DisconnectReason::Protocol("invalid compressed message")),
        };
        state.inflater = inflater;
        result
    }

    /// Processes a control frame.
    fn on_control(
        &mut self,
        opcode: u8,
        payload: &[u8],
        state: &mut ThreadState<'_>,
    ) -> Result<(), DisconnectReason> {
        match opcode {
            PING => {
                state.counters.pings += 1;
                let key = state.keys.next_key();
                write_frame(&mut state.output, PONG, payload, key);
                self.send(state)
            }
            CLOSE => {
                if self.stage == Stage::Closing {
                    return Err(DisconnectReason::ClosedByUs);
                }
                let key = state.keys.next_key();
                write_frame(&mut state.output, CLOSE, payload.get(..2).unwrap_or_default(), key);
                // The connection ends even if this answer cannot be sent.
                let _ = self.send(state);
                Err(DisconnectReason::Closed(
                    payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Processes a message.
    #[inline]
    fn on_message(
        &mut self,
        message: &[u8],
        now: u64,
        state: &mut ThreadState<'_>,
    ) -> Result<(), DisconnectReason> {
        if self.stage >= Stage::Open
            && let Some(stamp) = state.finder.find(message)
        {
            if self.spec.role == Role::Returner {
                self.on_recoverable(stamp, message, now, state);
                return Ok(());
            }
            state.record_delivery(self.receiver, stamp, now);
            self.echoes_due += u32::from(self.spec.role == Role::Echo);
            return Ok(());
        }
        self.on_server_message(message, now, state)
    }

    /// Processes a message without a stamp, such as `welcome` or `error`.
    #[cold]
    fn on_server_message(
        &mut self,
        message: &[u8],
        now: u64,
        state: &mut ThreadState<'_>,
    ) -> Result<(), DisconnectReason> {
        let text = message;
        let Ok(message) = serde_json::from_slice::<ServerMessage>(text) else {
            state.counters.count_error("message_not_understood");
            return Ok(());
        };
        match (message.kind.as_str(), self.stage) {
            ("welcome", Stage::AwaitingWelcome) if self.spec.role.subscribes() => {
                let key = state.keys.next_key();
                if self.spec.role == Role::Returner {
                    self.write_recover(key, state);
                } else {
                    state.encoder.write_subscribe(&mut state.output, self.topic(), key);
                }
                self.stage = Stage::Subscribing;
                self.send(state)
            }
            ("subscribed", Stage::Subscribing) if self.spec.role == Role::Returner => {
                self.on_subscribed_list(text, now, state)
            }
            ("gap" | "position", Stage::Open) if self.spec.role == Role::Returner => {
                self.on_gap(text, state);
                Ok(())
            }
            ("published", _) => {
                self.is_synchronized = true;
                Ok(())
            }
            ("welcome", Stage::AwaitingWelcome) | ("subscribed", Stage::Subscribing) => {
                self.stage = Stage::Open;
                self.paused = self.spec.role == Role::SlowReader;
                state.counters.connect.record(now.saturating_sub(self.connect_started));
                Ok(())
            }
            ("error", Stage::AwaitingWelcome | Stage::Subscribing) => {
                Err(DisconnectReason::Rejected(message.data.error_code()))
            }
            ("error", _) => {
                state.counters.count_error(&format!("error_{}", message.data.error_code()));
                self.on_message_rejected(state);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Stops waiting for the deliveries of the last message, which the server rejected.
    fn on_message_rejected(&mut self, state: &mut ThreadState<'_>) {
        match self.spec.role {
            Role::Echo => {
                state.cancel_expected(1);
                self.echoes_due += 1;
            }
            Role::Publisher => {
                // The publish after the last message can be rejected, too.
                self.is_synchronized = true;
                let stream = state.plan.stream_of(self.spec.number, self.sent.saturating_sub(1));
                let deliveries = state.shared.subscribers(state.plan.topic_of(stream));
                state.cancel_expected(deliveries);
                self.expected = self.expected.saturating_sub(deliveries);
            }
            _ => {}
        }
    }
}

/// A message of the server, reduced to the fields that are used.
#[derive(Deserialize)]
struct ServerMessage {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: ServerMessageData,
}

#[derive(Default, Deserialize)]
struct ServerMessageData {
    /// A string in `error`, a number in `goodbye`.
    #[serde(default)]
    code: serde_json::Value,
}

impl ServerMessageData {
    /// Returns the code of an error. It becomes a key of the report, so unexpected characters are
    /// removed.
    fn error_code(&self) -> String {
        let code = self.code.as_str().unwrap_or("without_code");
        code.chars()
            .filter(|character| character.is_ascii_alphanumeric() || *character == '_')
            .take(40)
            .collect()
    }
}
