//! Phase of the opening handshake.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{self, Poll};

use deeperhub_protocol::handshake::{self, Refusal};

use super::{Next, PhaseContext};
use crate::connection::{Connection, State};
use crate::handshake::{ClientSource, HandshakeRequest};
use crate::metrics::{HandshakeOutcome, ProbeAnswer};
use crate::round::{HANDSHAKE_COST, Turn};
use crate::session::{Application, Peer};
use crate::table::UnreadInput;

/// Handles input of a connection in its handshake.
pub(super) fn feed<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    bytes: &[u8],
    turn: &mut Turn,
    ctx: &mut PhaseContext<'_, A>,
) -> Next {
    let State::Handshake(handshake) = &mut connection.state else { return Next::Continue };
    if handshake.client_source != ClientSource::ProxyHeader {
        return feed_head(connection, key, bytes, turn, ctx);
    }
    // The input may be a PROXY protocol header, which comes before TLS and HTTP.
    let shared = &*ctx.shared;
    match handshake.read_proxy_header(bytes, &shared.config, &mut connection.permit, &shared.metrics) {
        Ok(None) => Next::Continue,
        Ok(Some(rest)) => match connection.transport.end_preface(rest) {
            Some(rest) if rest.is_empty() => Next::Continue,
            Some(rest) => feed_head(connection, key, &rest, turn, ctx),
            None => Next::PollAgain,
        },
        Err(error) => {
            tracing::warn!(peer = %handshake.peer, %error, "Invalid PROXY protocol header");
            shared.metrics.record_handshake(HandshakeOutcome::ProxyFailed);
            Next::Remove
        }
    }
}

/// Handles input that belongs to the request's head.
fn feed_head<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    bytes: &[u8],
    turn: &mut Turn,
    ctx: &mut PhaseContext<'_, A>,
) -> Next {
    let State::Handshake(handshake) = &mut connection.state else { return Next::Continue };
    let shared = &*ctx.shared;
    let (request, accept_key) =
        match handshake.feed(bytes, &shared.config, shared.limits.head(), &shared.metrics) {
            None => return Next::Continue,
            Some(Err(refusal)) => return Next::refuse(refusal),
            Some(Ok(HandshakeRequest::Probe)) => return answer_probe(ctx),
            Some(Ok(HandshakeRequest::Upgrade(request, accept_key))) => (request, accept_key),
        };
    if let Some(drain) = &ctx.drain {
        return Next::refuse(Refusal::draining(drain.reconnect_delay(ctx.round.clock.now())));
    }
    if handshake.client_source == ClientSource::RequestHeaders
        && let Err(refusal) =
            handshake.resolve_client(&request, &shared.config, &mut connection.permit, &shared.metrics)
    {
        return Next::refuse(refusal);
    }
    let peer = Peer {
        address: handshake.peer,
        tls: connection.transport.is_tls(),
        user: connection.transport.user(),
        accepted_at: handshake.accepted_at,
    };
    handshake.decision = Some((accept_key, Box::pin(ctx.application.accept(request, peer))));
    poll_decision(connection, key, turn, ctx)
}

/// Polls the application's decision on a handshake. If it is accepted, queues the response and
/// gives the connection its session.
pub(super) fn poll_decision<A: Application>(
    connection: &mut Connection<A::Session>,
    key: u32,
    turn: &mut Turn,
    ctx: &mut PhaseContext<'_, A>,
) -> Next {
    ctx.round.budget.spend(turn, HANDSHAKE_COST);
    let State::Handshake(handshake) = &mut connection.state else { return Next::Continue };
    let Some((_, decision)) = &mut handshake.decision else { return Next::Continue };
    let mut cx = task::Context::from_waker(&connection.waker);
    let decision = catch_unwind(AssertUnwindSafe(|| decision.as_mut().poll(&mut cx)));
    let metrics = &ctx.shared.metrics;
    let accepted = match decision {
        Ok(Poll::Pending) => return Next::Continue,
        Ok(Poll::Ready(Ok(accepted))) => accepted,
        Ok(Poll::Ready(Err(refusal))) => return Next::refuse(refusal),
        Err(_) => {
            metrics.session_panics.inc();
            metrics.record_handshake(HandshakeOutcome::Lost);
            return Next::Remove;
        }
    };
    let Some((accept_key, _)) = handshake.decision.take() else { return Next::Continue };
    let (rest, accepted_at) = (std::mem::take(&mut handshake.head), handshake.accepted_at);
    let arena = &mut ctx.round.buffers.arena;
    let start = arena.len();
    connection.flags.deflate = handshake.deflate;
    let extensions = handshake.deflate.map(|params| params.header_value());
    handshake::write_accept(
        arena.replies(),
        &accept_key,
        accepted.subprotocol.as_deref(),
        extensions.as_deref(),
    );
    connection.outbox.push_arena(arena.bytes(), start..arena.len());
    connection.state = State::Open(accepted.session);
    metrics.record_handshake(HandshakeOutcome::Accepted);
    metrics.handshake_seconds.observe_duration(accepted_at.elapsed());
    // Clients that connected at the same time get their first pings at different times, in the
    // second half of the interval.
    let first_ping = ctx.shared.config.ping_interval.mul_f64(0.5 + f64::from(key % 64) / 128.0);
    connection.deadline = ctx.round.clock.deadline(first_ping);
    Next::Open((!rest.is_empty()).then(|| Box::new(UnreadInput { bytes: rest, at: 0 })))
}

/// Returns the answer to a load balancer's readiness probe.
fn answer_probe<A: Application>(ctx: &PhaseContext<'_, A>) -> Next {
    let is_ready = catch_unwind(AssertUnwindSafe(|| ctx.application.is_ready())).unwrap_or(false);
    let refusal = match &ctx.drain {
        Some(drain) => Some(Refusal::draining(drain.reconnect_delay(ctx.round.clock.now()))),
        None => (!is_ready).then(Refusal::not_ready),
    };
    ctx.shared.metrics.probes.inc(if refusal.is_none() { ProbeAnswer::Ready } else { ProbeAnswer::Unready });
    Next::AnswerProbe(refusal.map(Box::new))
}
