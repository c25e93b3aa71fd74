//! Decides on handshakes.

use std::future::Future;
use std::sync::Arc;

use deeperhub_listener::{Accepted, Peer};
use deeperhub_protocol::ClientId;
use deeperhub_protocol::handshake::{Refusal, Request};

use crate::auth::Login;
use crate::hub::Hub;
use crate::local::Local;
use crate::session::Session;
use crate::trace::{HandshakeSpan, HandshakeTrace};

/// The subprotocol of this version of the messages.
const SUBPROTOCOL: &str = "deeperhub.v1.json";

/// What the listener runs for a node.
#[derive(Debug)]
pub(crate) struct Application {
    pub(crate) hub: Arc<Hub>,
    /// What a connection is called before it has its place.
    pub(crate) unnamed: ClientId,
}

impl Application {
    fn decide(
        &self,
        request: &Request,
        peer: Peer,
        trace: Option<Box<HandshakeTrace>>,
    ) -> Result<Accepted<Session>, Refusal> {
        if request.headers("origin").nth(1).is_some() {
            return Err(Refusal::origin_not_allowed("more than one Origin"));
        }
        self.hub
            .live
            .load()
            .origins
            .check(request.origin(), request.host(), peer.tls)
            .map_err(|error| Refusal::origin_not_allowed(error.to_string()))?;
        let subprotocol = subprotocol(request)?;
        // A token says more than a certificate, which may be a machine's that several users share.
        let of_certificate = || peer.user.map(|user| Login::of_certificate(user.into()));
        let login = self.hub.config.auth.decide(request)?.or_else(of_certificate);
        let session = Session::new(peer.address, request.origin(), self.unnamed.clone(), login, trace);
        Ok(Accepted { session, subprotocol: subprotocol.map(Into::into) })
    }
}

impl deeperhub_listener::Application for Application {
    type WorkerState = Local;
    type Session = Session;

    fn worker_state(&self, worker: usize) -> Local {
        Local::new(&self.hub, worker)
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
        let trace = HandshakeTrace::of(&request);
        let span = HandshakeSpan::begin(tracer, trace.as_deref(), &request, &peer);
        let decision = self.decide(&request, peer, trace);
        if let Some(span) = span {
            span.end(tracer, decision.as_ref().err());
        }
        std::future::ready(decision)
    }
}

/// The subprotocol to answer with (RFC 6455 section 4.2.2): one that was offered, or none where none was. One that
/// carries a token is never answered with, so it must not be the only one: a browser would end the connection.
fn subprotocol(request: &Request) -> Result<Option<&'static str>, Refusal> {
    let mut offered = false;
    for name in request.subprotocols() {
        if name == SUBPROTOCOL {
            return Ok(Some(SUBPROTOCOL));
        }
        offered = true;
    }
    if offered {
        return Err(Refusal::bad_handshake(
            "none of the subprotocols is known: offer deeperhub.v1.json, which a token goes beside, or none",
        ));
    }
    Ok(None)
}
