//! Whether a node should get traffic.

use std::borrow::Cow;
use std::time::SystemTime;

use crate::canary::Canary;
use crate::phase::Phase;

/// Whether a node should get traffic, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// All that speaks against it, the gravest first; empty: it is ready.
    pub reasons: Vec<UnreadyReason>,
}

/// One reason why a node is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnreadyReason {
    /// What found it.
    pub check: HealthCheck,
    /// A word for programs: `starting`, `draining`, `stopped`, `delivery_stalled`, `cluster_unavailable`,
    /// `cluster_stalled`.
    pub code: &'static str,
    /// A sentence for people.
    pub message: Cow<'static, str>,
    /// The worker that it is about.
    pub worker: Option<u16>,
    /// Since when, where that is known.
    pub since: Option<SystemTime>,
}

/// What looks whether a node is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthCheck {
    /// Where it is in its life.
    Phase,
    /// Probes that workers must answer.
    Canary,
    /// The cluster, if there is one and the node is not to serve without it.
    Cluster,
}

impl HealthCheck {
    /// The name in answers: `phase`, `canary`, `cluster`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Phase => "phase",
            Self::Canary => "canary",
            Self::Cluster => "cluster",
        }
    }
}

impl Health {
    pub(crate) fn new(phase: Phase, canary: &Canary) -> Self {
        let mut reasons = Vec::new();
        reasons.extend(phase_reason(phase));
        reasons.extend(canary.unready_reasons());
        Self { reasons }
    }

    /// Whether nothing speaks against it.
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

fn phase_reason(phase: Phase) -> Option<UnreadyReason> {
    let (code, message) = match phase {
        Phase::Serving => return None,
        Phase::Starting => ("starting", "the node is starting"),
        Phase::Draining => ("draining", "the node shuts down"),
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
