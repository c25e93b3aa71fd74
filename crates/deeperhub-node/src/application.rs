//! The application that the listener runs for a node. It decides about handshakes.

use std::future::Future;
use std::sync::Arc;

use deeperhub_listener::{Accepted, Peer};
use deeperhub_protocol::ClientId;
use deeperhub_protocol::handshake::{Refusal, Request};

use crate::auth::Login;
use crate::hub::Hub;
use crate::session::Session;
use crate::trace::{HandshakeSpan, HandshakeTrace};
use crate::worker::NodeWorker;

/// Subprotocol of the current message version.
const SUBPROTOCOL: &str = "deeperhub.v1.json";

/// Application of a node.
#[derive(Debug)]
pub(crate) struct Application {
    pub(crate) hub: Arc<Hub>,
    /// Client ID of each connection until it opens and gets its own ID.
    pub(crate) placeholder_id: ClientId,
}

impl Application {
    /// Decides whether a handshake is accepted, and creates the session of its connection.
    fn authorize(
        &self,
        request: &Request,
        peer: Peer,
        trace: Option<Box<HandshakeTrace>>,
    ) -> Result<Accepted<Session>, Refusal> {
        if request.headers("origin").nth(1).is_some() {
            return Err(Refusal::origin_not_allowed("more than one Origin header"));
        }
        self.hub
            .limits
            .load()
            .session
            .origins
            .check(request.origin(), request.host(), peer.tls)
            .map_err(|error| Refusal::origin_not_allowed(error.to_string()))?;
        let subprotocol = negotiate_subprotocol(request)?;
        // A token overrides a certificate, which may belong to a machine that several users share.
        let certificate_login = || peer.user.map(|user| Login::from_certificate(user.into()));
        let login = self.hub.config.auth.authenticate_handshake(request)?.or_else(certificate_login);
        let session = Session::new(peer.address, request.origin(), self.placeholder_id.clone(), login, trace);
        Ok(Accepted { session, subprotocol: subprotocol.map(Into::into) })
    }
}

impl deeperhub_listener::Application for Application {
    type WorkerState = NodeWorker;
    type Session = Session;

    fn worker_state(&self, worker: usize) -> NodeWorker {
        NodeWorker::new(&self.hub, worker)
    }

    fn is_ready(&self) -> bool {
        self.hub.health().is_ready()
    }

    fn accept(
        &self,
        request: Request,
        peer: Peer,
    ) -> impl Future<Output = Result<Accepted<Session>, Refusal>> + 'static {
        let tracer = &self.hub.config.tracer;
        let trace = HandshakeTrace::from_request(&request);
        let span = HandshakeSpan::begin(tracer, trace.as_deref(), &request, &peer);
        let decision = self.authorize(&request, peer, trace);
        if let Some(span) = span {
            span.end(tracer, decision.as_ref().err());
        }
        std::future::ready(decision)
    }
}

/// Returns the subprotocol for the response (RFC 6455 section 4.2.2), or `None` if the client
/// offered none.
///
/// # Errors
///
/// Refuses the handshake if the client offers only unsupported subprotocols, because a browser
/// closes a connection if the server selects none of them. A subprotocol that carries a token
/// counts as unsupported, because the server never selects it.
fn negotiate_subprotocol(request: &Request) -> Result<Option<&'static str>, Refusal> {
    let mut offered = false;
    for name in request.subprotocols() {
        if name == SUBPROTOCOL {
            return Ok(Some(SUBPROTOCOL));
        }
        offered = true;
    }
    if offered {
        return Err(Refusal::bad_handshake(
            "no offered subprotocol is supported: offer deeperhub.v1.json, also beside a token, or none",
        ));
    }
    Ok(None)
}
