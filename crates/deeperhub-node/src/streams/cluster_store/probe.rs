//! Probes of the cluster's store.

use std::sync::PoisonError;

use deeperhub_cluster::{Append, Appended};
use deeperhub_protocol::RawJson;
use deeperhub_protocol::message::TraceContext;
use tokio::sync::oneshot;

use super::probe_topic::ProbeTopic;
use super::{ClusterStore, ReaderRequest, Requester};

impl ClusterStore {
    /// Queues a probe of the store. Returns `false` if the reader has ended.
    pub(crate) fn queue_probe(&self, number: u64) -> bool {
        self.requests.send(ReaderRequest::Probe { number }).is_ok()
    }

    /// Appends a probe, and waits for the outcome.
    ///
    /// # Errors
    ///
    /// Returns the reason for which the probe was not appended.
    pub(crate) async fn append_probe(&self, message: RawJson<'_>) -> Result<Appended, String> {
        let number = self.appends.allocate(Requester::Probe, false);
        let (sender, outcome) = oneshot::channel();
        *self.probe.append.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, sender));
        let append = Append {
            topic: self.probe.topic.borrow(),
            limits: ProbeTopic::limits(),
            known: None,
            from: None,
            excludes_publisher: false,
            trace: TraceContext::default(),
            payload: message,
            once: None,
        };
        self.broker.append(append, number).map_err(|error| error.to_string())?;
        match outcome.await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            // Another probe has replaced this one.
            Err(_) => Err("the probe was replaced".to_owned()),
        }
    }
}
