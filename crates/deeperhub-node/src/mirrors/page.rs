//! Pages of the histories of topics whose mirrors cannot answer: most of them nobody follows here.

use std::collections::VecDeque;

use deeperhub_cluster::{StorePosition, StreamLimits, StreamRange, StreamRead};
use deeperhub_history::StoredMessage;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::{HistoryOrder, HistoryStart};
use deeperhub_protocol::{Epoch, Position, Topic};

use super::checks;
use crate::hub::Hub;
use crate::metrics::ReadLabel;
use crate::streams::{
    ClusterStore, HistoryPage, HistoryRead, PageRequest, ReadFailed, TopicHistory, whole_seconds,
};

/// Reads for one page. An answer of the store can be too short for all messages that are wanted.
const MAX_READS: usize = 12;

/// Page of a topic without history.
const NO_PAGE: HistoryPage = HistoryPage { position: None, frames: Vec::new(), next: None };

/// Reads for one page of a topic whose offsets have holes. Some pages need all messages before them.
const MAX_SCANS: usize = 256;

/// Newest and oldest offset of a stream in the store, and its epoch.
#[derive(Debug, Clone, Copy)]
struct StoreBounds {
    top: StorePosition,
    oldest: u64,
}

/// Reads a page. A topic that the store does not know has none.
pub(super) async fn read(
    request: &PageRequest,
    hub: &Hub,
    store: &ClusterStore,
) -> Result<HistoryPage, ReadFailed> {
    tokio::select! {
        page = request.read_mirror_or_store(hub, store) => page,
        () = wait_until_without_rule(hub, store, &request.topic) => Ok(NO_PAGE),
    }
}

/// Waits until no rule keeps messages of a topic.
async fn wait_until_without_rule(hub: &Hub, store: &ClusterStore, topic: &Topic<'_>) {
    let mut changes = store.rule_changes.subscribe();
    while limits(hub, store, topic).is_some() {
        // The sender lives as long as the store.
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

impl PageRequest {
    /// Reads the page from the topic's mirror, as soon as it is whole, or from the store, if nobody
    /// follows the topic.
    ///
    /// The store can be ahead of the mirror by an epoch. A subscriber that had such a page could not
    /// tell whether the next gap it gets leads to an earlier epoch.
    async fn read_mirror_or_store(&self, hub: &Hub, store: &ClusterStore) -> Result<HistoryPage, ReadFailed> {
        if !hub.is_followed(&self.topic) {
            return self.read(hub, store).await;
        }
        store.read_for_handle(self.topic.as_str().into(), None).await;
        match hub.streams.read(&hub.router, &self.as_history_request(), self.max_bytes) {
            HistoryRead::Page(page) => Ok(page),
            HistoryRead::InCluster(_) if !hub.is_followed(&self.topic) => self.read(hub, store).await,
            HistoryRead::InCluster(_) | HistoryRead::Stored(_) => Err(ReadFailed),
        }
    }

    /// Reads the page from the store. A topic that the store does not know has none.
    async fn read(&self, hub: &Hub, store: &ClusterStore) -> Result<HistoryPage, ReadFailed> {
        let Some(limits) = limits(hub, store, &self.topic) else { return Ok(NO_PAGE) };
        let last = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let range = self.read_range(store, limits, None, last).await?;
        let Some(top) = range.top else { return Ok(NO_PAGE) };
        let bounds = StoreBounds { top, oldest: range.oldest };
        let position = Some(position_of(top, &range));
        if range.whole.is_some() {
            return self.read_with_holes(hub, store, limits, range).await;
        }
        let Some((start, end)) = self.wanted(bounds) else {
            return Ok(HistoryPage { position, frames: Vec::new(), next: None });
        };
        let first = range.messages.first().map_or(u64::MAX, |message| message.offset());
        let messages = if first <= start || first == bounds.oldest {
            self.messages(hub, &range)
        } else {
            self.read_between(hub, store, limits, (top.epoch, start, end)).await?
        };
        let within = messages.into_iter().filter(|message| (start..=end).contains(&message.offset));
        Ok(self.page(position, bounds, within.collect()))
    }

    /// Returns the first and the last offset that the page can have, if there are any.
    fn wanted(&self, StoreBounds { top, oldest }: StoreBounds) -> Option<(u64, u64)> {
        let newest = top.offset;
        let from_end = |count: u64| (newest + 1).saturating_sub(count).max(oldest);
        let (start, end) = match self.order {
            HistoryOrder::Ascending => {
                let start = match self.from {
                    Some(HistoryStart::Offset(offset)) => offset.max(oldest),
                    Some(HistoryStart::FromEnd(count)) => from_end(count),
                    None => oldest,
                };
                (start, start.saturating_add(self.limit - 1).min(newest))
            }
            HistoryOrder::Descending => {
                let end = match self.from {
                    Some(HistoryStart::Offset(offset)) => offset.clamp(oldest, newest.max(oldest)),
                    Some(HistoryStart::FromEnd(count)) => from_end(count),
                    None => newest,
                };
                ((end + 1).saturating_sub(self.limit).max(oldest), end)
            }
        };
        (start <= end && end <= newest && start > 0).then_some((start, end))
    }

    /// Reads the messages between two offsets, as many as the page's bytes allow.
    async fn read_between(
        &self,
        hub: &Hub,
        store: &ClusterStore,
        limits: StreamLimits,
        (epoch, mut start, end): (u64, u64, u64),
    ) -> Result<Vec<StoredMessage<KeptFrame>>, ReadFailed> {
        for _ in 0..MAX_READS {
            let after = Some(StorePosition { epoch, offset: start - 1 });
            let count = u32::try_from(end - start + 1).unwrap_or(u32::MAX);
            let range = self.read_range(store, limits, after, count).await?;
            if range.top.is_none_or(|top| top.epoch != epoch) {
                // The stream was replaced meanwhile.
                return Err(ReadFailed);
            }
            if self.order == HistoryOrder::Ascending || !range.is_cut || range.messages.len() < 2 {
                return Ok(self.messages(hub, &range));
            }
            // The answer lacks the end, with which the page begins. Fewer messages fit.
            start = end + 1 - (range.messages.len() as u64 / 2).clamp(1, end - start + 1);
        }
        Err(ReadFailed)
    }

    /// Reads the page of a topic whose offsets have holes, so that they do not tell how many messages
    /// are between them. `newest` is a read of the last messages.
    async fn read_with_holes(
        &self,
        hub: &Hub,
        store: &ClusterStore,
        limits: StreamLimits,
        newest: StreamRange,
    ) -> Result<HistoryPage, ReadFailed> {
        let Some(top) = newest.top else { return Err(ReadFailed) };
        let position = Some(position_of(top, &newest));
        let oldest = newest.oldest;
        let last = match newest.messages.last() {
            Some(last) if !newest.is_cut => last.offset(),
            Some(_) => {
                let range = self.read_range(store, limits, None, 1).await?;
                range.messages.last().ok_or(ReadFailed)?.offset()
            }
            None => return Ok(HistoryPage { position, frames: Vec::new(), next: None }),
        };
        let after = |offset: u64| Some(StorePosition { epoch: top.epoch, offset });
        let limit = self.limit;
        let (start, count, end, keeps_first) = match (self.order, self.from) {
            (HistoryOrder::Ascending, None) => (after(oldest - 1), limit, last, true),
            (HistoryOrder::Ascending, Some(HistoryStart::Offset(offset))) => {
                (after(offset.max(oldest) - 1), limit, last, true)
            }
            (HistoryOrder::Ascending, Some(HistoryStart::FromEnd(count))) => (None, count, last, true),
            (HistoryOrder::Descending, None) => (None, limit, last, false),
            (HistoryOrder::Descending, Some(HistoryStart::Offset(offset))) => {
                (None, u64::MAX, offset.max(oldest), false)
            }
            (HistoryOrder::Descending, Some(HistoryStart::FromEnd(count))) => {
                (None, limit.saturating_add(count.saturating_sub(1)), last, true)
            }
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let mut range = self.read_range(store, limits, start, count).await?;
        let mut messages = VecDeque::new();
        for _ in 0..MAX_SCANS {
            if range.top.is_none_or(|now| now.epoch != top.epoch) {
                // The stream was replaced meanwhile.
                return Err(ReadFailed);
            }
            let read = self.messages(hub, &range);
            messages.extend(read.into_iter().filter(|message| message.offset <= end));
            let is_over = keeps_first && messages.len() as u64 >= limit;
            while messages.len() as u64 > limit {
                if keeps_first {
                    messages.pop_back()
                } else {
                    messages.pop_front()
                };
            }
            let whole_to = range.whole.map_or(u64::MAX, |whole| whole.to);
            if is_over || whole_to >= end {
                let bounds = StoreBounds { top: StorePosition { offset: last, ..top }, oldest };
                return Ok(self.page(position, bounds, messages.into()));
            }
            range = self.read_range(store, limits, after(whole_to), count).await?;
        }
        Err(ReadFailed)
    }

    async fn read_range(
        &self,
        store: &ClusterStore,
        limits: StreamLimits,
        after: Option<StorePosition>,
        messages: u32,
    ) -> Result<StreamRange, ReadFailed> {
        let topic = self.topic.clone();
        let read = StreamRead { topic, after, messages, limits, creates: false, follows: false };
        read_one(store, read).await
    }

    fn messages(&self, hub: &Hub, range: &StreamRange) -> Vec<StoredMessage<KeptFrame>> {
        range.messages.iter().filter_map(|envelope| hub.stored_envelope(envelope)).collect()
    }

    /// Returns the page with messages of ascending offsets.
    fn page(
        &self,
        position: Option<Position>,
        StoreBounds { top, oldest }: StoreBounds,
        mut messages: Vec<StoredMessage<KeptFrame>>,
    ) -> HistoryPage {
        if self.order == HistoryOrder::Descending {
            messages.reverse();
        }
        let (mut frames, mut bytes, mut last) = (Vec::new(), 0, None);
        for message in messages {
            bytes += message.message.len();
            if bytes > self.max_bytes && !frames.is_empty() {
                break;
            }
            last = Some(message.offset);
            frames.push(message.message);
        }
        let next = last.and_then(|last| match self.order {
            HistoryOrder::Ascending => (last < top.offset).then_some(last + 1),
            HistoryOrder::Descending => (last > oldest).then(|| last - 1),
        });
        HistoryPage { position, frames, next }
    }
}

/// Returns the state of a topic's history in the store; `None` if the store does not know the topic.
pub(crate) async fn topic_history(
    hub: &Hub,
    store: &ClusterStore,
    topic: &Topic<'_>,
) -> Result<Option<TopicHistory>, ReadFailed> {
    let Some(limits) = limits(hub, store, topic) else { return Ok(None) };
    let topic = topic.clone().into_owned();
    let read = StreamRead { topic, after: None, messages: 1, limits, creates: false, follows: false };
    let range = read_one(store, read).await?;
    let Some(top) = range.top else { return Ok(None) };
    Ok(Some(TopicHistory {
        epoch: Epoch::from_bits(top.epoch),
        offset: top.offset,
        messages: range.kept,
        bytes: 0,
        oldest: (range.oldest <= top.offset).then_some(range.oldest),
    }))
}

/// Returns the newest position of a stream, as a read has found it.
fn position_of(top: StorePosition, range: &StreamRange) -> Position {
    Position { epoch: Epoch::from_bits(top.epoch), offset: top.offset, time: whole_seconds(range.time) }
}

async fn read_one(store: &ClusterStore, read: StreamRead) -> Result<StreamRange, ReadFailed> {
    let ranges = match store.broker.read_streams(vec![read]) {
        Ok(reply) => reply.await,
        Err(error) => Err(error),
    };
    let range = ranges.ok().and_then(|ranges| ranges.into_iter().next()?.ok());
    store.metrics.reads.inc(if range.is_some() { ReadLabel::Ok } else { ReadLabel::Failed });
    range.ok_or(ReadFailed)
}

/// Returns the limits of a topic's stream, if a rule keeps its messages.
fn limits(hub: &Hub, store: &ClusterStore, topic: &Topic<'_>) -> Option<StreamLimits> {
    let (_, rule) = hub.streams.rule(topic)?;
    checks::limits_of(hub, store, rule)
}
