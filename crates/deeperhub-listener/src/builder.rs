//! Builds and starts a listener.

use std::net::{IpAddr, SocketAddr};

use deeperhub_metrics::Cells;

use crate::acceptor::ListenOn;
use crate::config::Config;
use crate::listener::{Listener, StartError};
use crate::metrics::Metrics;
use crate::session::Application;

/// Builder of a [`Listener`], made with [`Listener::builder`].
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

    /// Sets the instruments that the listener counts with, and the cells that they were made over.
    /// A worker needs a cell, so the number of workers is capped at that of the cells. Default: the
    /// listener counts with instruments of its own, which nothing reads.
    pub fn metrics(mut self, cells: &Cells, metrics: Metrics) -> Self {
        self.metrics = Some((cells.clone(), metrics));
        self
    }

    /// Binds the address and starts the listener. It needs no async runtime: everything runs on
    /// threads of its own.
    ///
    /// # Errors
    ///
    /// [`StartError`]; no thread is left running then.
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
