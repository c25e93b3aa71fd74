//! Membership of a node in a cluster: messages to and from other nodes.

pub use crate::config::ClusterConfig;
pub use deeperhub_cluster::{BrokerUrl, BrokerUrlError, Config as BrokerConfig, Engine};

mod answer;
pub(crate) mod query;
pub(crate) mod receive;
mod recent_positions;
mod rules_digest;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_cluster::{Broker, Driver, DriverHandle, InterestChange, JoinOutcome};

use crate::hub::Hub;
use crate::streams::{ClusterStore, StreamRouter};
use receive::ClusterReceiver;
pub(crate) use rules_digest::rules_digest;

/// Time that the start waits for the broker. Afterwards the node serves its own clients while the
/// cluster thread continues to connect.
const BROKER_START_TIMEOUT: Duration = Duration::from_secs(3);

/// Time that a stop allows at least for queued messages to reach the broker. The stop allows more
/// time if the deadline of the drain is later.
const MIN_FLUSH_TIME: Duration = Duration::from_secs(2);

/// Extra time that a stop waits for a driver that does not keep its deadline.
const DRIVER_STOP_GRACE: Duration = Duration::from_secs(2);

/// Handle of the thread that connects to the broker. Dropping the handle ends the thread.
#[derive(Debug)]
pub(crate) struct ClusterThread {
    broker: Broker,
    driver: Option<DriverHandle>,
}

impl ClusterThread {
    /// Starts the thread and waits for the first attempt to join the cluster, for at most
    /// [`BROKER_START_TIMEOUT`]. The outcome is `None` if the attempt takes longer.
    pub(crate) fn start(
        hub: &Arc<Hub>,
        broker: Broker,
        driver: Driver,
    ) -> io::Result<(Self, Option<JoinOutcome>)> {
        let receiver = ClusterReceiver::new(Arc::clone(hub));
        let driver_handle = driver.spawn(receiver)?;
        let outcome = driver_handle.wait_for_join(BROKER_START_TIMEOUT);
        Ok((Self { broker, driver: Some(driver_handle) }, outcome))
    }

    /// Flushes queued messages, tells the other nodes that this node leaves, and ends the thread.
    /// The flush may take until `deadline`, or for [`MIN_FLUSH_TIME`] if that is later.
    pub(crate) async fn stop(mut self, deadline: Option<Instant>) {
        let min_deadline = Instant::now() + MIN_FLUSH_TIME;
        let deadline = deadline.map_or(min_deadline, |deadline| deadline.max(min_deadline));
        self.broker.stop(deadline);
        if let Some(driver) = self.driver.take() {
            // The driver keeps the deadline unless a system call hangs.
            let late_deadline = deadline.checked_add(DRIVER_STOP_GRACE).unwrap_or(deadline);
            let _ = tokio::time::timeout_at(late_deadline.into(), driver.wait_for_end()).await;
        }
    }
}

impl Drop for ClusterThread {
    fn drop(&mut self) {
        if self.driver.is_some() {
            self.broker.stop(Instant::now());
        }
    }
}

/// Registers an observer of the router that tells the broker which topics have a subscriber on this
/// node.
pub(crate) fn forward_interest(router: &StreamRouter, broker: &Broker, store: Option<Arc<ClusterStore>>) {
    let broker = broker.clone();
    router.observe_interest(move |name, change| {
        // Topics that start with `$` are reserved and stay on this node.
        if !name.starts_with('$') {
            let change = match change {
                deeperhub_router::InterestChange::Gained => InterestChange::Gained,
                // A subscriber in this process follows the topic, too.
                deeperhub_router::InterestChange::Lost
                    if store.as_ref().is_some_and(|store| store.is_watched(name)) =>
                {
                    return;
                }
                deeperhub_router::InterestChange::Lost => InterestChange::Lost,
            };
            broker.change_interest(name, change);
        }
    });
}
