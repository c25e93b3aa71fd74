//! An application that accepts every handshake.

use std::future::Future;

use deeperhub_protocol::handshake::{Refusal, Request};

use crate::session::{Accepted, Application, Peer, Session};

/// Application that accepts every handshake, created with [`accept_all`].
#[derive(Debug, Clone, Copy)]
pub struct AcceptAll<F> {
    make_session: F,
}

/// Returns an application that accepts every handshake. Each connection gets a session from
/// `make_session`. The application has no worker state and selects no subprotocol.
pub fn accept_all<S, F>(make_session: F) -> AcceptAll<F>
where
    S: Session<WorkerState = ()>,
    F: Fn() -> S + Send + Sync + 'static,
{
    AcceptAll { make_session }
}

impl<S, F> Application for AcceptAll<F>
where
    S: Session<WorkerState = ()>,
    F: Fn() -> S + Send + Sync + 'static,
{
    type WorkerState = ();
    type Session = S;

    fn worker_state(&self, _worker: usize) {}

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<S>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: (self.make_session)(), subprotocol: None }))
    }
}
