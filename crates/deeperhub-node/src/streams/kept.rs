//! The values that the router keeps for topics and for stripes of topics.

use std::collections::HashMap;
use std::sync::Arc;

use deeperhub_history::{
    Budget, Cursor, Delivery, Evicted, OpenError, RemovedStream, RuleId, Seconds, Stream, StreamId,
    StreamTable,
};
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::{Epoch, Topic};
use deeperhub_router::{Keep, TopicView};

use super::clock::Clock;
use super::cluster_store::TopicMirror;
use super::disk::Disk;
use super::stored::{DiskStream, StoreRefused, StreamName};

/// Messages that leave a history, until they are dropped outside of the lock.
pub(crate) type EvictedFrames = Evicted<KeptFrame>;

/// The stream of one topic, in the table of the topic's stripe.
#[derive(Debug, Default)]
pub(crate) struct KeptStream(Option<StreamId>);

/// The streams of one stripe.
#[derive(Debug)]
pub(crate) struct StreamStripe {
    pub(crate) table: StreamTable<KeptFrame, StreamName>,
    clock: Arc<Clock>,
    disk: Option<Arc<Disk>>,
    /// `true` if the cluster keeps the streams, and these are mirrors.
    is_mirror: bool,
    /// Number of times that the rules have changed.
    pub(crate) rule_changes: u32,
    /// Ends of the streams that rules have removed and whose topics have subscribers. A subscriber
    /// that is behind is told what it has lost.
    ends: HashMap<StreamId, Cursor>,
}

/// Work that an operation under the lock of a stripe leaves to do after it.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// Messages to drop.
    pub(crate) evicted: EvictedFrames,
    /// Topics whose streams were removed, so that the router can forget them.
    pub(crate) removed: Vec<StreamName>,
    /// `true` if the budget is exceeded and this stripe cannot help.
    pub(crate) is_over_budget: bool,
}

/// Reason why a topic has no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoStream {
    /// No rule keeps messages of the topic. Rules can have changed since the caller looked.
    NoRule,
    /// The topic's rule has as many streams as it may have.
    TooMany(RuleId),
    /// The cluster's store was not read yet.
    Cold,
}

impl Keep for KeptStream {
    type Stripe = StreamStripe;

    fn is_spent(&self) -> bool {
        self.0.is_none()
    }

    fn on_followed(&mut self, is_followed: bool, stripe: &mut StreamStripe) {
        if let Some(id) = self.0 {
            let now = stripe.clock.seconds(stripe.clock.now());
            let is_watched = stripe.has_watchers(id);
            stripe.table.set_followed(id, is_followed || is_watched, now);
            if !is_followed && stripe.table.get(id).is_none() {
                self.forget(stripe);
                return;
            }
            if let Some(mirror) = stripe.table.name_mut(id).and_then(|name| name.mirror.as_mut()) {
                mirror.on_followed(is_followed);
            }
        }
    }
}

impl KeptStream {
    /// Adds a stream of the store. Returns `false` if there is no place for it.
    #[cfg(feature = "disk")]
    pub(crate) fn restore(
        &mut self,
        stripe: &mut StreamStripe,
        (rule, name): (RuleId, StreamName),
        stream: Stream<KeptFrame>,
        now: Seconds,
        remains: &mut Remains,
    ) -> bool {
        let restored = stripe.table.restore(rule, name, stream, now, &mut remains.evicted);
        self.0 = restored.ok();
        self.0.is_some()
    }

    /// Forgets the stream if the table has removed it, and no subscriber needs to know its end.
    pub(crate) fn forget_removed(&mut self, topic: TopicView<'_>, stripe: &mut StreamStripe) {
        let needs_end = |id| topic.subscribers() > 0 && stripe.ends.contains_key(&id);
        if self.0.is_some_and(|id| stripe.table.get(id).is_none() && !needs_end(id)) {
            self.forget(stripe);
        }
    }

    fn forget(&mut self, stripe: &mut StreamStripe) {
        if let Some(id) = self.0.take() {
            stripe.ends.remove(&id);
        }
    }
}

/// A stream without expired messages.
#[derive(Debug)]
pub(crate) struct CurrentStream<'a> {
    pub(crate) stream: &'a Stream<KeptFrame>,
    /// Delivery of its rule.
    pub(crate) delivery: Delivery,
    /// Offset of the oldest message in memory or in the store.
    pub(crate) oldest: u64,
    pub(crate) name: &'a StreamName,
}

impl StreamStripe {
    pub(crate) fn new(
        budget: Arc<Budget>,
        clock: Arc<Clock>,
        disk: Option<Arc<Disk>>,
        is_mirror: bool,
    ) -> Self {
        let table = StreamTable::new(budget);
        let table = if disk.is_some() { table.with_store() } else { table };
        Self { table, clock, disk, is_mirror, rule_changes: 0, ends: HashMap::new() }
    }

    /// Returns the number of the topic's stream, if it has one.
    pub(crate) fn find(&self, kept: &KeptStream) -> Option<StreamId> {
        kept.0.filter(|id| self.table.get(*id).is_some())
    }

    /// Changes the rules. Returns the names of the streams that are removed. `find` returns the new
    /// rule of a stream.
    pub(super) fn set_budget(
        &mut self,
        budget: Arc<Budget>,
        find: impl FnMut(&StreamName) -> Option<RuleId>,
        evicted: &mut EvictedFrames,
    ) -> Vec<StreamName> {
        self.rule_changes = self.rule_changes.wrapping_add(1);
        let removed = self.table.set_budget(budget, find, evicted).into_iter();
        let forget = |RemovedStream { id, name, end, is_followed }: RemovedStream<StreamName>| {
            let end = name.mirror.as_ref().map_or(Some(end), |mirror| mirror.end(end));
            if let Some(end) = end.filter(|_| is_followed) {
                self.ends.insert(id, end);
            }
            name
        };
        removed.map(forget).collect()
    }

    /// Returns the end of the topic's stream, if rules have removed it.
    pub(crate) fn end(&self, kept: &KeptStream) -> Option<Cursor> {
        let id = kept.0?;
        // A mirror that is not whole yet has taken the place of the stream.
        let before = || self.table.name(id)?.mirror.as_ref()?.end_before();
        self.ends.get(&id).copied().or_else(before)
    }

    /// Returns the topic's stream without expired messages, if it has one. A mirror that was not read
    /// from the store yet is none.
    pub(crate) fn current(
        &mut self,
        kept: &KeptStream,
        now: Seconds,
        remains: &mut Remains,
    ) -> Option<CurrentStream<'_>> {
        let id = kept.0?;
        let mirror = self.table.name_mut(id)?.mirror.as_mut();
        if mirror.is_some_and(|mirror| !mirror.is_readable()) {
            return None;
        }
        let rule = self.table.rule(id)?;
        let delivery = self.table.budget().rules().get(rule)?.policy().delivery();
        self.table.current(id, now, &mut remains.evicted)?;
        let (stream, name) = (self.table.get(id)?, self.table.name(id)?);
        let oldest = match &self.disk {
            None => stream.oldest(),
            Some(disk) => {
                // Whole seconds: a message of the same second may have been dropped.
                let complete_since = match disk.complete_since_ms() {
                    0 => Seconds::default(),
                    since_ms => Seconds::new(self.clock.seconds_of_unix_ms(since_ms).get() + 1),
                };
                self.table.oldest_stored(id, now, complete_since)?
            }
        };
        Some(CurrentStream { stream, delivery, oldest, name })
    }

    /// Returns the number that a stream has in the store. It is created if the store did not take it
    /// before. Returns `None` without a store.
    ///
    /// # Errors
    ///
    /// Returns an error if the store takes nothing now.
    pub(crate) fn stored_stream(&mut self, id: StreamId) -> Result<Option<DiskStream>, StoreRefused> {
        let Some(disk) = &self.disk else { return Ok(None) };
        let Some(epoch) = self.table.get(id).map(Stream::epoch) else { return Ok(None) };
        let Some(name) = self.table.name_mut(id) else { return Ok(None) };
        let stream = match name.disk {
            Some(stream) => stream,
            None => disk.create(&name.topic, epoch)?,
        };
        name.disk = Some(stream);
        Ok(name.disk)
    }

    /// Empties a stream in the store, which gets another number there.
    ///
    /// # Errors
    ///
    /// Returns an error if the store takes nothing now. The stream is then as it was.
    pub(crate) fn clear_stored(&mut self, id: StreamId, epoch: Epoch) -> Result<(), StoreRefused> {
        if let Some(disk) = &self.disk
            && let Some(name) = self.table.name_mut(id)
            && let Some(stream) = name.disk
        {
            name.disk = Some(disk.clear(stream, &name.topic, epoch)?);
        }
        Ok(())
    }

    /// Returns the number of the topic's stream, which is created if needed. `rule` is the topic's
    /// rule in `budget`.
    ///
    /// # Errors
    ///
    /// Returns [`NoStream`] if the topic may have no stream.
    pub(crate) fn find_or_open(
        &mut self,
        topic: TopicView<'_>,
        kept: &mut KeptStream,
        (budget, rule): (&Arc<Budget>, RuleId),
        now: Seconds,
        remains: &mut Remains,
    ) -> Result<StreamId, NoStream> {
        if let Some(id) = self.find(kept) {
            return Ok(id);
        }
        // The rules of this stripe may be older or newer than those of the caller.
        let rule = if Arc::ptr_eq(self.table.budget(), budget) {
            rule
        } else {
            let parsed = Topic::parse(&**topic.name()).ok();
            parsed.and_then(|topic| super::find_rule(self.table.budget(), &topic)).ok_or(NoStream::NoRule)?
        };
        let has_subscribers = topic.subscribers() > 0;
        let mirror = self.is_mirror.then(|| Box::new(TopicMirror::opened(has_subscribers, self.end(kept))));
        let name = StreamName { topic: Arc::clone(topic.name()), disk: None, mirror };
        match self.table.open(rule, name, fastrand::u64(..), now, &mut remains.evicted) {
            Ok(opened) => {
                remains.removed.extend(opened.replaced);
                kept.forget(self);
                if has_subscribers {
                    self.table.set_followed(opened.id, true, now);
                }
                kept.0 = Some(opened.id);
                // If the store does not take it now, the first message creates it.
                let _ = self.stored_stream(opened.id);
                Ok(opened.id)
            }
            Err(OpenError::TooManyStreams) => Err(NoStream::TooMany(rule)),
            Err(_) => Err(NoStream::NoRule),
        }
    }
}
