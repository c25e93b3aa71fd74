//! Publishes to topics whose streams the cluster keeps.

use deeperhub_cluster::{Append, AppendNumber, EnqueueError};
use deeperhub_history::{Budget, RuleId};
use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Topic};

use super::{ClusterStore, Requester};
use crate::metrics::AppendLabel;
use crate::streams::{Once, PublishRefusal, StreamRouter};

/// A publish for the cluster's store.
#[derive(Debug)]
pub(crate) struct ClusterPublish<'a> {
    pub(crate) topic: &'a Topic<'a>,
    pub(crate) message: RawJson<'a>,
    pub(crate) from: Option<&'a ClientId>,
    /// `true` if the publisher is excluded from its own message.
    pub(crate) excludes_publisher: bool,
    pub(crate) trace: &'a TraceContext<'a>,
    pub(crate) once: Option<Once<'a>>,
    pub(crate) requester: Requester,
}

/// A publish that is on its way to the cluster's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) number: AppendNumber,
    /// Subscriptions on this node that match the topic now.
    pub(crate) subscribers: u64,
}

impl ClusterStore {
    /// Sends a publish to the store. Nothing is delivered here: the store sends the message to all
    /// nodes that follow the topic, this one included. `rule` is the topic's rule.
    ///
    /// # Errors
    ///
    /// Returns [`PublishRefusal`] if the store cannot be reached, or if too much waits for it.
    pub(crate) fn publish(
        &self,
        router: &StreamRouter,
        publish: &ClusterPublish<'_>,
        (budget, rule): (&Budget, RuleId),
    ) -> Result<Queued, PublishRefusal> {
        let ClusterPublish { topic, message, from, excludes_publisher, trace, once, requester } = *publish;
        let Some(policy) = budget.rules().get(rule).map(|rule| rule.policy()) else {
            return Err(PublishRefusal::Unavailable);
        };
        // A store that knows less than this node starts a new epoch.
        let (subscribers, known) =
            router.update_and_count(topic, |_, kept, stripe| stripe.known_position(kept));
        let number = self.appends.allocate(requester);
        let append = Append {
            topic: topic.borrow(),
            limits: self.limits_of(policy),
            known,
            from: from.cloned(),
            excludes_publisher,
            trace: trace.borrow(),
            payload: message,
            once: once.map(|once| deeperhub_cluster::Once { user: once.user, text: once.text }),
        };
        match self.broker.append(append, number) {
            Ok(()) => Ok(Queued { number, subscribers }),
            Err(error) => {
                self.appends.forget(number);
                self.metrics.appends.inc(match error {
                    EnqueueError::Full => AppendLabel::QueueFull,
                    _ => AppendLabel::Unavailable,
                });
                Err(PublishRefusal::Unavailable)
            }
        }
    }
}
