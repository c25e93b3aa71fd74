//! Reads of topics from the cluster's store: when one begins, and which messages it asks for.

use std::sync::Arc;

use deeperhub_cluster::{StorePosition, StreamRange, StreamRead};
use deeperhub_history::ReadRequest;
use deeperhub_protocol::Topic;

use crate::hub::Hub;
use crate::planted::planted;
use crate::streams::{ClusterStore, Remains};

/// How a read begins.
pub(super) enum Begin {
    Read(ReadRequest),
    /// A read is under way, or not possible now.
    Reading,
    /// There is nothing to read.
    Done,
}

impl Hub {
    /// Returns `true` if a stream of this node has subscribers.
    pub(super) fn is_followed(&self, topic: &Topic<'_>) -> bool {
        self.router.update_kept(topic, |topic, kept, stripe| {
            stripe.find(kept).is_some_and(|id| topic.subscribers() > 0 || stripe.has_watchers(id))
        })
    }

    /// Begins the read of a topic that is followed.
    pub(super) fn begin_read(&self, topic: &str) -> Begin {
        let Ok(parsed) = Topic::parse(topic) else { return Begin::Done };
        self.router.update_kept(&parsed, |topic, kept, stripe| {
            let Some(id) = stripe.find(kept) else { return Begin::Done };
            let is_followed = topic.subscribers() > 0 || stripe.has_watchers(id);
            if !is_followed || stripe.is_settled(id) {
                return Begin::Done;
            }
            stripe.begin_read(id).map_or(Begin::Reading, Begin::Read)
        })
    }

    /// Opens the streams of topics that have got a rule while they had subscribers. Returns the reads
    /// that they need.
    pub(super) fn open_late_streams(&self) -> Vec<(Arc<str>, ReadRequest)> {
        let now = self.streams.clock.seconds(self.streams.clock.now());
        let mut reads = Vec::new();
        for stripe in self.router.stripes() {
            let mut remains = Remains::default();
            self.router.visit_topics(stripe, |topic, kept, stripe| {
                if stripe.find(kept).is_none()
                    && let Some((_, Some(read))) =
                        self.open_followed((topic, kept, stripe), now, &mut remains)
                {
                    reads.push((Arc::clone(topic.name()), read));
                }
            });
            self.streams.finish(&self.router, remains, now);
        }
        reads
    }

    /// Returns the read that a topic needs after one has failed.
    pub(super) fn retry_read(&self, topic: &str) -> Option<ReadRequest> {
        let parsed = Topic::parse(topic).ok()?;
        self.router.update_kept(&parsed, |_, kept, stripe| stripe.retry_read(stripe.find(kept)?))
    }

    /// Returns the read that replaces one of a topic's last messages, if the answer had no room for all
    /// of them. It begins with the oldest one, and others follow it.
    pub(super) fn read_from_oldest(
        &self,
        topic: &Topic<'_>,
        request: ReadRequest,
        range: &StreamRange,
    ) -> Option<ReadRequest> {
        let top = range.top.filter(|_| request.after.is_none() && range.is_cut)?;
        let (budget, rule) = self.streams.rule(topic)?;
        let history = budget.rules().get(rule)?.policy().history();
        let offset = top.offset.saturating_sub(history.into()).max(range.oldest.saturating_sub(1));
        let after = deeperhub_history::StorePosition { epoch: top.epoch, offset };
        Some(ReadRequest { after: Some(after), ..request })
    }

    /// Returns the request to the store for a read that a mirror asks for. Returns `None` if no rule
    /// keeps messages of the topic.
    pub(super) fn store_read(
        &self,
        store: &ClusterStore,
        topic: &str,
        request: ReadRequest,
    ) -> Option<StreamRead> {
        let topic = Topic::parse(topic.to_owned()).ok()?;
        let (budget, rule) = self.streams.rule(&topic)?;
        let limits = store.limits_of(budget.rules().get(rule)?.policy());
        // The answer begins with the message that the mirror has, so that another message in its place
        // is noticed.
        let first = |offset: u64| offset.saturating_sub(u64::from(!planted!(RewriteUnread)));
        let after =
            request.after.map(|after| StorePosition { epoch: after.epoch, offset: first(after.offset) });
        let messages = limits.messages.saturating_add(u32::from(after.is_some()));
        Some(StreamRead { topic, after, messages, limits, creates: true, follows: true })
    }
}
