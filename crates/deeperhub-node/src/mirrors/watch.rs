//! Topics that subscribers in this process follow, without a client of this node.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use deeperhub_cluster::InterestChange;
use deeperhub_protocol::{Epoch, Topic};
use deeperhub_router::TopicView;

use crate::hub::Hub;
use crate::streams::{KeptStream, NoStream, Readiness, Remains, StreamStripe};

/// Time that a subscriber waits for the store at most.
const WAIT_TIMEOUT: Duration = Duration::from_secs(3);

/// A topic that a subscriber in this process follows. Dropping this value ends that.
#[derive(Debug)]
pub(crate) struct WatchGuard {
    hub: Arc<Hub>,
    topic: Topic<'static>,
}

impl WatchGuard {
    /// Follows a topic for a subscriber in this process. Returns `None` without a cluster that keeps
    /// streams.
    ///
    /// # Errors
    ///
    /// Returns [`NoStream`] if the topic can have no stream.
    pub(crate) fn watch(hub: &Arc<Hub>, topic: &Topic<'static>) -> Result<Option<Self>, NoStream> {
        let Hub { streams, router, .. } = &**hub;
        let Some(store) = &streams.cluster else { return Ok(None) };
        let (budget, rule) = streams.rule(topic).ok_or(NoStream::NoRule)?;
        let now = streams.clock.seconds(streams.clock.now());
        streams.with_room(router, || {
            let mut remains = Remains::default();
            let watch = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
                let id = stripe.find_or_open(topic, kept, (&*budget, rule), now, &mut remains)?;
                stripe.table.set_followed(id, true, now);
                // The router reports interest under the same lock.
                if stripe.change_watchers(id, true, true) == 1 {
                    let name = topic.name();
                    store.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(name));
                    store.broker.change_interest(name, InterestChange::Gained);
                }
                Ok(())
            };
            let watched = router.update_kept(topic, watch);
            streams.finish(router, remains, now);
            watched
        })?;
        Ok(Some(Self { hub: Arc::clone(hub), topic: topic.clone() }))
    }

    /// Waits until the stream of the topic can answer a subscriber, or the store could not be read.
    pub(crate) async fn wait_until_ready(&self, position: Option<(Epoch, u64)>) {
        let Hub { streams, router, .. } = &*self.hub;
        let Some(store) = &streams.cluster else { return };
        if let Readiness::Waits(read) = streams.readiness(router, &self.topic, position) {
            let read = store.read_for_handle(self.topic.as_str().into(), read);
            let _ = tokio::time::timeout(WAIT_TIMEOUT, read).await;
        }
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let Hub { streams, router, .. } = &*self.hub;
        let Some(store) = &streams.cluster else { return };
        let now = streams.clock.seconds(streams.clock.now());
        router.update_kept(&self.topic, |topic, kept, stripe| {
            let has_subscribers = topic.subscribers() > 0;
            // The stream may have lost its rule meanwhile.
            let id = stripe.find(kept);
            if id.is_some_and(|id| stripe.change_watchers(id, false, has_subscribers) > 0) {
                return;
            }
            let mut watched = store.watched.lock().unwrap_or_else(PoisonError::into_inner);
            if watched.remove(topic.name()) && !has_subscribers {
                store.broker.change_interest(topic.name(), InterestChange::Lost);
                if let Some(id) = id {
                    stripe.table.set_followed(id, false, now);
                }
            }
        });
    }
}
