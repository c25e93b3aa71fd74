//! Publishes to topics whose streams the cluster keeps.

use deeperhub_cluster::{Append, AppendNumber, EnqueueError};
use deeperhub_history::{Budget, RuleId};
use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Topic};

use super::{ClusterStore, Requester};
use crate::metrics::AppendLabel;
use crate::streams::{Once, PublishRefusal, StreamRouter};
use crate::trace::{ActiveSpan, Tracer};

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
    /// Span of the publish, if it is recorded, with its tracer.
    pub(crate) span: Option<(&'a ActiveSpan, &'a Tracer)>,
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
    /// Returns [`PublishRefusal`] if the store cannot be reached, if too much waits for it, or if the message
    /// is too large for it.
    pub(crate) fn publish(
        &self,
        router: &StreamRouter,
        publish: &ClusterPublish<'_>,
        (budget, rule): (&Budget, RuleId),
    ) -> Result<Queued, PublishRefusal> {
        let ClusterPublish { topic, message, from, excludes_publisher, trace, once, requester, span } =
            *publish;
        let Some(policy) = budget.rules().get(rule).map(|rule| rule.policy()) else {
            return Err(PublishRefusal::Unavailable);
        };
        // A store that knows less than this node starts a new epoch.
        let (subscribers, known) =
            router.update_and_count(topic, |_, kept, stripe| stripe.known_position(kept));
        let number = self.appends.allocate(requester, span.is_some());
        // The outcome may come before this call returns.
        if let Some((span, tracer)) = span
            && !self.spans.start(number, span)
        {
            super::spans::count_lost(tracer);
        }
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
        self.mirror_metrics.waiting_appends.inc();
        match self.broker.append(append, number) {
            Ok(()) => Ok(Queued { number, subscribers }),
            Err(error) => {
                self.mirror_metrics.waiting_appends.dec();
                self.appends.forget(number);
                self.spans.remove(number);
                let (result, refusal) = match error {
                    EnqueueError::Full => (AppendLabel::QueueFull, PublishRefusal::Unavailable),
                    EnqueueError::TooLarge => {
                        let limit = self.broker.max_payload_bytes();
                        (AppendLabel::TooLarge, PublishRefusal::TooLarge { limit })
                    }
                    _ => (AppendLabel::Unavailable, PublishRefusal::Unavailable),
                };
                self.metrics.appends.inc(result);
                Err(refusal)
            }
        }
    }
}
