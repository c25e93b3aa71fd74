//! Readiness of a node.

use std::borrow::Cow;
use std::time::SystemTime;

use crate::phase::Phase;

/// Readiness of a node for traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Reasons why the node is unready: first its phase, then workers, the cluster and the history
    /// store. Empty if the node is ready.
    pub reasons: Vec<UnreadyReason>,
}

/// Reason why a node is unready.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnreadyReason {
    /// Check that failed.
    pub check: HealthCheck,
    /// Code for programs: `starting`, `draining`, `stopped`, `delivery_stalled`,
    /// `cluster_unavailable`, `cluster_stalled`, `store_stalled`, `history_unavailable`.
    pub code: &'static str,
    /// Text for people.
    pub message: Cow<'static, str>,
    /// Worker that failed the check, if the check is about workers.
    pub worker: Option<u16>,
    /// Start of the problem, if known.
    pub since: Option<SystemTime>,
}

/// Check of a node's readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthCheck {
    /// Phase of the node.
    Phase,
    /// Delivery of probes to the workers.
    Canary,
    /// Connection to the cluster's broker, and probes through the broker and its streams. Skipped if
    /// [`ClusterConfig::ready_alone`](crate::ClusterConfig::ready_alone) is set.
    Cluster,
    /// The store of kept messages on disk.
    History,
}

impl HealthCheck {
    /// Returns the name in answers: `phase`, `canary`, `cluster`, `history`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Phase => "phase",
            Self::Canary => "canary",
            Self::Cluster => "cluster",
            Self::History => "history",
        }
    }
}

impl Health {
    pub(crate) fn new(phase: Phase, worker_reasons: Vec<UnreadyReason>) -> Self {
        let mut reasons = Vec::new();
        reasons.extend(phase_reason(phase));
        reasons.extend(worker_reasons);
        Self { reasons }
    }

    /// Returns `true` if the node should get traffic.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

impl UnreadyReason {
    pub(crate) fn for_cluster(fault: String) -> Self {
        Self {
            check: HealthCheck::Cluster,
            code: "cluster_unavailable",
            message: fault.into(),
            worker: None,
            since: None,
        }
    }
}

impl UnreadyReason {
    pub(crate) fn for_unchecked_streams() -> Self {
        Self {
            check: HealthCheck::Cluster,
            code: "cluster_unavailable",
            message: "streams are compared with the cluster's store, because the broker was away".into(),
            worker: None,
            since: None,
        }
    }

    pub(crate) fn for_history(fault: &str) -> Self {
        Self {
            check: HealthCheck::History,
            code: "history_unavailable",
            message: format!("the history store takes no messages: {fault}").into(),
            worker: None,
            since: None,
        }
    }
}

fn phase_reason(phase: Phase) -> Option<UnreadyReason> {
    let (code, message) = match phase {
        Phase::Serving => return None,
        Phase::Starting => ("starting", "the node is starting"),
        Phase::Draining => ("draining", "the node is shutting down"),
        Phase::Stopped => ("stopped", "the node has stopped"),
    };
    Some(UnreadyReason {
        check: HealthCheck::Phase,
        code,
        message: message.into(),
        worker: None,
        since: None,
    })
}
