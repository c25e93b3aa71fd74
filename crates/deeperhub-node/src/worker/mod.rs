//! The workers of a node: their state, their requests, and the delivery of messages.

mod deliver;
mod excluded;
mod execute;
mod outlet;
pub(crate) mod parked;
pub(crate) mod parked_answers;
mod parked_connections;
pub(crate) mod refusals;
pub(crate) mod request;
mod state;
mod store_link;
mod stored;
mod sweep;
mod users;

use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Instant;

use deeperhub_listener::{ConnectionKey, Connections};

use crate::session::Session;
use crate::top::TopWindow;
use deliver::DeliveryScope;
pub(crate) use state::NodeWorker;
pub(crate) use store_link::{AppendReply, StoredReply};

impl deeperhub_listener::WorkerState<Session> for NodeWorker {
    fn on_written(&mut self, now: Instant) {
        self.fan_out_tracker.on_round_written(now, self.index, &self.hub.config.tracer, &mut self.metrics);
    }

    fn on_drained(&mut self, key: ConnectionKey) {
        self.replays.on_drained(key);
    }

    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, Session>) -> Poll<()> {
        // This step comes first, so that other workers and the broker's driver run in parallel with
        // the rest.
        self.flush_wakeups();
        self.hub.flush_broker();
        let limits = self.shared_limits.load();
        if !Arc::ptr_eq(limits, &self.limits) {
            self.limits = Arc::clone(limits);
        }
        if self.top_window.is_some() != self.hub.top.is_tracking(connections.now()) {
            self.top_window = match self.top_window {
                None => Some(Box::new(TopWindow::new(connections.now()))),
                Some(_) => None,
            };
        }
        let stored = match self.store {
            None => Poll::Pending,
            Some(_) => self.process_store(cx, connections),
        };
        let requests = self.process_requests(cx, connections);
        let deliveries = self.deliver(DeliveryScope::All(cx), connections);
        if !self.hub.router.is_congested() {
            self.uncongested_rounds = self.uncongested_rounds.wrapping_add(1);
            for key in self.paused_publishers.drain(..) {
                connections.resume_reading(key);
            }
        }
        // Live deliveries go first, so that a storm of recoveries delays none of them.
        let replays = self.replay(cx, connections);
        if stored.is_ready() || requests.is_ready() || deliveries.is_ready() || replays.is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests;
