//! The opening handshake of one connection.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use deeperhub_protocol::deflate::{self, Params};
use deeperhub_protocol::handshake::{AcceptKey, Parsed, Refusal, Request};

use crate::config::Config;
use crate::session::Accepted;

/// What the application answers.
pub(crate) type Deciding<S> = Pin<Box<dyn Future<Output = Result<Accepted<S>, Refusal>>>>;

/// The state of a handshake. A connection that is idle later has none.
pub(crate) struct Handshake<S> {
    pub(crate) peer: SocketAddr,
    /// The head as far as it came, or what came behind it.
    pub(crate) head: Vec<u8>,
    /// Decided before the request was read: there is no place for it.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) deciding: Option<(AcceptKey, Deciding<S>)>,
    /// The compression that the client offered and will be answered.
    pub(crate) deflate: Option<Params>,
}

impl<S> Handshake<S> {
    pub(crate) fn new(peer: SocketAddr, refusal: Option<Refusal>) -> Self {
        Self { peer, head: Vec::new(), refusal, deciding: None, deflate: None }
    }

    /// Takes in what came. `None`: the head is not complete yet.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        config: &Config,
    ) -> Option<Result<(Request, AcceptKey), Refusal>> {
        self.head.extend_from_slice(bytes);
        match Request::parse(&self.head) {
            Ok(Parsed::Partial) => None,
            Ok(Parsed::Complete { request, head_bytes }) => {
                self.head.drain(..head_bytes);
                Some(self.check(request, config))
            }
            Err(refusal) => Some(Err(self.refusal.take().unwrap_or(refusal))),
        }
    }

    fn check(&mut self, request: Request, config: &Config) -> Result<(Request, AcceptKey), Refusal> {
        if !config.paths.is_empty() && !config.paths.iter().any(|path| path == request.path()) {
            return Err(Refusal::not_found());
        }
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        let key = request.check_upgrade()?;
        self.deflate = deflate::negotiate(&config.compression, request.extensions())?;
        Ok((request, key))
    }
}
