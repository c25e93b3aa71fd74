//! Phases of a connection's deadlines: handshake timeouts, pings, signs of life, close timeouts.

use std::time::Duration;

use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};

use super::{Next, PhaseContext};
use crate::config::Config;
use crate::connection::{Connection, Liveness, State};
use crate::handshake::ClientSource;
use crate::metrics::{HandshakeLimit, HandshakeOutcome};
use crate::round::Clock;
use crate::session::Application;
use crate::table::{PeerProgress, ProgressTable};

/// Maximum number of times that the close timeout starts anew for a peer that keeps reading.
/// Without a maximum, a peer that reads a byte at a time could hold its connection forever.
const MAX_CLOSE_EXTENSIONS: u32 = 20;

/// Maximum bytes of a ping on the wire, TLS overhead included.
const PING_BYTES: u64 = 64;

/// Interval between liveness checks of a connection if pings are off.
const CHECK_INTERVAL_WITHOUT_PINGS: Duration = Duration::from_secs(3600);

/// Handles a connection whose deadline has passed.
pub(super) fn on_deadline<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    progress: &mut ProgressTable,
    ctx: &mut PhaseContext<'_, A>,
) -> Next {
    match &connection.state {
        State::Handshake(handshake) => {
            let is_silent = handshake.head.is_empty() || handshake.client_source == ClientSource::ProxyHeader;
            let metrics = &ctx.shared.metrics;
            metrics.handshakes_limited.inc(HandshakeLimit::Time);
            if is_silent && handshake.decision.is_none() {
                metrics.record_handshake(HandshakeOutcome::TimedOut);
                Next::Remove
            } else {
                Next::refuse(Refusal::bad_handshake("the handshake took too long"))
            }
        }
        State::Closing(_) => on_close_timeout(connection, key, progress, ctx),
        State::Open(_) => check_liveness(connection, key, progress, ctx),
    }
}

/// Returns the deadline at which a connection is pinged next. If pings are off, reaching the
/// deadline only sets a later one.
fn next_ping(config: &Config, clock: &Clock) -> u32 {
    let interval = config.ping_interval;
    clock.deadline(if interval.is_zero() { CHECK_INTERVAL_WITHOUT_PINGS } else { interval })
}

/// Pings an open connection, or closes it if there was no sign of life since the last ping.
fn check_liveness<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    progress: &mut ProgressTable,
    ctx: &mut PhaseContext<'_, A>,
) -> Next {
    let (config, clock) = (&ctx.shared.config, &ctx.round.clock);
    let pong_deadline = clock.deadline(config.pong_timeout);
    let next_tick = clock.deadline(config.tick());
    let sent = check_progress(connection, key, progress);
    match connection.flags.liveness {
        Liveness::Alive if config.ping_interval.is_zero() => {
            connection.deadline = next_ping(config, clock);
        }
        Liveness::Alive => {
            connection.deadline = pong_deadline;
            connection.flags.liveness = Liveness::PingSent;
            connection.flags.awaiting_pong = true;
            let arena = &mut ctx.round.buffers.arena;
            let start = arena.len();
            frame::write_ping(arena.replies(), b"");
            connection.outbox.push_arena(arena.bytes(), start..arena.len());
        }
        // While input is held, no sign of life can be read. The peer's kernel acknowledges the ping
        // nevertheless, unless the peer is gone. The next ping asks again.
        Liveness::PingSent | Liveness::FinalRead | Liveness::Silent
            if !connection.flags.holds.is_empty() && sent != Progress::Stalled =>
        {
            connection.flags.liveness = Liveness::Alive;
            connection.deadline = next_ping(config, clock);
            progress.remove(&key);
        }
        Liveness::PingSent | Liveness::FinalRead if !connection.flags.holds.is_empty() => {
            return Next::close(pong_timeout_reason());
        }
        // Send progress is a sign of life.
        Liveness::PingSent | Liveness::FinalRead | Liveness::Silent if sent == Progress::Advanced => {
            connection.flags.liveness = Liveness::PingSent;
            connection.deadline = pong_deadline;
        }
        Liveness::PingSent => {
            // Input may have arrived that was not read yet.
            connection.flags.liveness = Liveness::FinalRead;
            connection.deadline = next_tick;
            return Next::PollAgain;
        }
        // The connection has not had its last turn yet.
        Liveness::FinalRead => connection.deadline = next_tick,
        Liveness::Silent => return Next::close(pong_timeout_reason()),
    }
    Next::Continue
}

fn pong_timeout_reason() -> CloseReason {
    CloseReason::new(CloseCode::PongTimeout, "no sign of life in time")
}

/// Records a sign of life of an open connection.
#[cold]
pub(super) fn record_sign_of_life<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    progress: &mut ProgressTable,
    ctx: &PhaseContext<'_, A>,
) {
    if connection.flags.liveness != Liveness::Alive && matches!(connection.state, State::Open(_)) {
        connection.flags.liveness = Liveness::Alive;
        connection.deadline = next_ping(&ctx.shared.config, &ctx.round.clock);
        progress.remove(&key);
    }
}

/// Marks a connection as silent if its [final read](Liveness::FinalRead) found no input. Called
/// when the socket had no input.
pub(super) fn mark_silent<S>(connection: &mut Connection<S>, clock: &Clock) {
    if connection.flags.liveness == Liveness::FinalRead {
        connection.flags.liveness = Liveness::Silent;
        connection.deadline = clock.millis();
    }
}

/// Progress that a peer made in taking bytes between two checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Bytes wait for the peer, and its kernel acknowledged none.
    Stalled,
    /// The kernel acknowledged at most a ping, or nothing waited for it, or nothing is known.
    Unclear,
    /// The peer took bytes.
    Advanced,
}

/// Returns the progress of a peer since the last call, and records it.
///
/// A slow reader reads a ping only after the data sent before it, so its pong may be late. The
/// acknowledgements of its kernel show that it still reads. An acknowledgement of the ping alone
/// does not count: a kernel acknowledges a ping even if the program hangs.
fn check_progress<S>(connection: &Connection<S>, key: u32, progress: &mut ProgressTable) -> Progress {
    let Ok(sent) = connection.transport.progress() else { return Progress::Unclear };
    let is_behind = sent.is_outstanding || !connection.is_written();
    let current = PeerProgress { acknowledged: sent.acknowledged, is_behind, extensions: 0 };
    let Some(previous) = progress.insert(key, current) else { return Progress::Unclear };
    let ping_bytes = if previous.is_behind { 0 } else { PING_BYTES };
    match sent.acknowledged.saturating_sub(previous.acknowledged) {
        0 if is_behind => Progress::Stalled,
        bytes if bytes > ping_bytes => Progress::Advanced,
        _ => Progress::Unclear,
    }
}

/// Records the send progress of a connection that starts closing. The next close timeout compares
/// with it.
pub(super) fn record_progress<S>(connection: &Connection<S>, key: u32, progress: &mut ProgressTable) {
    progress.remove(&key);
    check_progress(connection, key, progress);
}

/// Removes a closing connection at its close timeout. If the peer took bytes since the last timeout
/// and more are waiting, the timeout starts anew, so that the close frame reaches it.
fn on_close_timeout<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    progress: &mut ProgressTable,
    ctx: &PhaseContext<'_, A>,
) -> Next {
    let previous = progress.get(&key).copied();
    let sent = check_progress(connection, key, progress);
    let extensions = previous.map_or(0, |previous| previous.extensions) + 1;
    let is_behind = progress.get_mut(&key).is_some_and(|progress| {
        progress.extensions = extensions;
        progress.is_behind
    });
    if sent != Progress::Advanced || !is_behind || extensions > MAX_CLOSE_EXTENSIONS {
        return Next::Remove;
    }
    connection.deadline = ctx.round.clock.deadline(ctx.shared.config.close_timeout);
    Next::Continue
}
