//! Builds and starts a listener.

use std::net::{IpAddr, SocketAddr};

use deeperhub_metrics::Cells;

use crate::acceptor::ListenOn;
use crate::config::Config;
use crate::listener::{Listener, StartError};
use crate::metrics::Metrics;
use crate::session::Application;

/// Builder of a [`Listener`], created with [`Listener::builder`].
#[derive(Debug)]
#[must_use = "nothing listens until `bind` is called"]
pub struct Builder<A> {
    application: A,
    config: Config,
    metrics: Option<(Cells, Metrics)>,
}

impl Listener {
    /// Returns a builder of a listener that serves `application`.
    pub fn builder<A: Application>(application: A) -> Builder<A> {
        Builder { application, config: Config::default(), metrics: None }
    }
}

impl<A: Application> Builder<A> {
    /// Sets the configuration. Default: [`Config::default`].
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Sets the metrics that the listener updates, and the cells with which they were created. Each
    /// worker needs a cell, so the listener starts at most as many workers as there are cells.
    /// Without this call, the listener creates metrics that are not exported.
    pub fn metrics(mut self, cells: &Cells, metrics: Metrics) -> Self {
        self.metrics = Some((cells.clone(), metrics));
        self
    }

    /// Binds the address and starts the listener's threads. No async runtime is needed.
    ///
    /// # Errors
    ///
    /// Returns an error if the address cannot be bound, a thread cannot be started or the metrics
    /// do not fit. Threads that were started then end.
    pub fn bind(self, on: impl Into<ListenOn>) -> Result<Listener, StartError> {
        let Self { application, config, metrics } = self;
        let (cells, metrics) = metrics.unwrap_or_else(|| {
            let cells = Cells::new(config.workers.max(1));
            let metrics = Metrics::new(&cells);
            (cells, metrics)
        });
        Listener::start(on.into(), config, application, &cells, metrics)
    }
}

impl From<SocketAddr> for ListenOn {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for ListenOn {
    fn from((ip, port): (I, u16)) -> Self {
        Self::Address(SocketAddr::new(ip.into(), port))
    }
}
