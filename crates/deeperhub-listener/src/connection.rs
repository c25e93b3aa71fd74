//! One connection of a worker: its state, its queue and its writes to the socket.

use std::io;
use std::task::{self, Poll, Waker};

use deeperhub_protocol::deflate::Params;
use deeperhub_protocol::frame::FrameDecoder;

use crate::admission::ConnectionPermit;
use crate::handshake::Handshake;
use crate::outbox::{NextWrite, Outbox};
use crate::round::Buffers;
use crate::transport::Transport;

/// Lifecycle state of a connection.
pub(crate) enum State<S> {
    /// The request head is incomplete, or the application is deciding.
    Handshake(Box<Handshake<S>>),
    /// The handshake was accepted, and the session handles messages.
    Open(S),
    /// The session has ended. Queued bytes are written and input is discarded, until this event.
    Closing(ClosingUntil),
}

/// Event at which a closing connection is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClosingUntil {
    /// All bytes are written and the client's close frame has arrived. The server then ends the
    /// connection first (RFC 6455 section 7.1.1).
    CloseFrame,
    /// The client has ended the connection. The server shuts down its sending side once all bytes
    /// are written. Used if no close frame can be expected: after an HTTP response or invalid
    /// input, and when memory is short.
    Eof,
    /// All bytes are written.
    Flushed,
}

/// One connection in the worker's slab. It is small: an idle connection has no buffer and no
/// future.
pub(crate) struct Connection<S> {
    pub(crate) transport: Transport,
    pub(crate) waker: Waker,
    pub(crate) state: State<S>,
    pub(crate) decoder: FrameDecoder,
    pub(crate) outbox: Outbox,
    /// Time at which the handshake or the close times out, or the next liveness check is due. In
    /// milliseconds of the worker's clock, which wraps.
    pub(crate) deadline: u32,
    pub(crate) flags: Flags,
    /// Counts the connection against the limits until it is dropped.
    pub(crate) permit: ConnectionPermit,
}

/// Flags of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flags {
    /// `true` if the connection is in the worker's dirty list.
    pub(crate) dirty: bool,
    /// `true` if the socket is full. A wake-up for writability is then armed.
    pub(crate) write_blocked: bool,
    /// Reasons for which input is not handled. Only open connections have any.
    pub(crate) holds: InputHolds,
    /// `true` if the listener sent a ping that has no pong yet.
    pub(crate) awaiting_pong: bool,
    /// Result of the last liveness check.
    pub(crate) liveness: Liveness,
    /// `true` if the connection is in the worker's backlog.
    pub(crate) in_backlog: bool,
    /// `true` if bytes were read but not handled in the connection's last turn.
    pub(crate) has_unread: bool,
    /// `true` if the queue is over its limit. The connection is then listed for closing and gets no
    /// more frames.
    pub(crate) over_queue_limit: bool,
    /// `true` if the sending side was shut down.
    pub(crate) write_shutdown: bool,
    /// `true` if the last read was long. The next read is then not batched.
    pub(crate) reads_long: bool,
    /// `true` if the worker state waits for the queue to drain. Only open connections have this
    /// flag.
    pub(crate) wants_drain: bool,
    /// Parameters of the negotiated compression.
    pub(crate) deflate: Option<Params>,
}

/// Reasons for which the input of an open connection is not handled. It is handled again once all
/// of them are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct InputHolds(u8);

impl InputHolds {
    /// The session paused reading.
    pub(crate) const PAUSED: Self = Self(1);
    /// The session parked the connection.
    pub(crate) const PARKED: Self = Self(2);

    #[inline]
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn contains(self, hold: Self) -> bool {
        self.0 & hold.0 != 0
    }

    /// Adds holds, and returns those that were not set.
    pub(crate) fn insert(&mut self, holds: Self) -> Self {
        let added = Self(holds.0 & !self.0);
        self.0 |= holds.0;
        added
    }

    /// Removes a hold. Returns `true` if it was set.
    pub(crate) fn remove(&mut self, hold: Self) -> bool {
        let was_set = self.contains(hold);
        self.0 &= !hold.0;
        was_set
    }
}

/// Result of the last liveness check of a peer. Any received byte is a sign of life. So are bytes
/// that the peer takes while more are queued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// There was a sign of life since the last ping, or no ping was sent yet.
    #[default]
    Alive,
    /// A ping was sent, and no sign of life followed yet.
    PingSent,
    /// The pong timeout passed. The connection gets one more turn, to read input that may have
    /// arrived.
    FinalRead,
    /// The last turn found no input. The connection is closed next.
    Silent,
}

impl<S> Connection<S> {
    /// Returns `true` if the kernel has taken all queued bytes.
    #[inline]
    pub(crate) fn is_written(&self) -> bool {
        self.outbox.is_empty() && self.transport.is_flushed()
    }

    /// Returns the number of queued bytes, including those that TLS holds until the socket takes
    /// them.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.outbox.len() + self.transport.unflushed_bytes()
    }

    /// Returns `true` if the connection must be in the dirty list: it has bytes to write, or its
    /// socket is full and queued bytes are still in the arena. A connection that waits for its
    /// queue to drain is listed too once a read has written all of it, since only the write phase
    /// reports that.
    #[inline]
    pub(crate) fn needs_write(&self) -> bool {
        if self.flags.write_blocked {
            self.outbox.may_be_in_arena()
        } else {
            !self.is_written() || self.flags.wants_drain
        }
    }

    /// Writes like [`flush`](Self::flush), but tries the socket even if the reactor has not
    /// reported it writable yet.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection is broken.
    pub(crate) fn flush_now(&mut self, buffers: &mut Buffers) -> io::Result<()> {
        self.transport.set_bypass_readiness(true);
        let result = self.flush(buffers);
        self.transport.set_bypass_readiness(false);
        result
    }

    /// Writes the queue until it is empty or the socket is full. Frames that the socket did not
    /// take are copied out of the arena.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection is broken.
    pub(crate) fn flush(&mut self, buffers: &mut Buffers) -> io::Result<()> {
        let Buffers { arena, gather, tls_scratch, sent } = buffers;
        let mut cx = task::Context::from_waker(&self.waker);
        loop {
            let result = match self.outbox.next_write(arena.bytes(), gather) {
                NextWrite::Nothing if self.transport.is_flushed() => {
                    self.flags.write_blocked = false;
                    return Ok(());
                }
                NextWrite::Nothing => self.transport.flush().map(|()| 0),
                NextWrite::Slice(bytes) => self.transport.write(bytes, tls_scratch),
                NextWrite::Slices(slices, count) => {
                    self.transport.write_vectored(&slices[..count], tls_scratch)
                }
            };
            match result {
                // Write again even after a short write: readiness is edge-triggered, so only
                // `WouldBlock` proves that the socket is full. Also, one vectored write may cover
                // only a part of the queue.
                Ok(written) => {
                    *sent += written as u64;
                    self.outbox.advance(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.transport.arm_write(&mut cx) {
                        Poll::Ready(ready) => ready?,
                        Poll::Pending => {
                            self.flags.write_blocked = true;
                            self.outbox.detach(arena);
                            return Ok(());
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Tcp;

    /// An idle connection should cost at most 1 KiB in total, including the reactor's state, the
    /// session's subscriptions and allocator overhead. Before raising a number here, move rarely
    /// used data into a `Box` or a map of the worker.
    #[test]
    fn a_connection_stays_small() {
        let connection = size_of::<Connection<[u64; 0]>>();
        assert!(connection <= 168, "a connection without its session has {connection} bytes");
        let outbox = size_of::<Outbox>();
        assert!(outbox <= 40, "an outbox has {outbox} bytes");
        let transport = size_of::<Transport>();
        assert!(transport <= 48, "a transport has {transport} bytes");
        assert_eq!(size_of::<FrameDecoder>(), 8);
        // TLS does not make plain connections larger.
        assert!(transport <= size_of::<Tcp>() + size_of::<usize>());
    }
}
