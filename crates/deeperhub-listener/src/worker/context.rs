//! State of a worker: the part that survives its panics, and what phases get of it.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::WorkerDrain;
use crate::config::{Config, Limits};
use crate::metrics::Metrics;
use crate::round::Round;
use crate::session::Application;
use crate::shared::ListenerShared;
use crate::table::ConnectionTable;

/// State of a worker that survives its panics, in three parts with one owner each. The loop
/// ([`Worker`](super::Worker)) and the application's worker state do not survive.
pub(crate) struct WorkerCore<S> {
    pub(crate) shared: ListenerShared,
    pub(crate) round: Round,
    pub(crate) table: ConnectionTable<S>,
}

impl<S> WorkerCore<S> {
    pub(crate) fn new(
        config: Arc<Config>,
        limits: Arc<ArcSwap<Limits>>,
        metrics: Metrics,
        now: Instant,
    ) -> Self {
        let shared = ListenerShared::new(config, limits, metrics);
        let round = Round::new(&shared.config, &shared.limits, now);
        Self { round, shared, table: ConnectionTable::default() }
    }
}

/// State that phases use besides their connection.
pub(crate) struct PhaseContext<'a, A: Application> {
    pub(crate) application: &'a A,
    pub(crate) worker_state: A::WorkerState,
    pub(crate) shared: &'a mut ListenerShared,
    pub(crate) round: &'a mut Round,
    /// The worker's part in a drain, while one is under way.
    pub(crate) drain: Option<WorkerDrain>,
}

impl<A: Application> PhaseContext<'_, A> {
    /// Starts a round: loads the limits, sets the clock and resets the budgets.
    pub(super) fn begin_round(&mut self, now: Instant) {
        self.shared.load_limits();
        self.round.begin(&self.shared.limits, now);
    }
}
