//! Reads of kept messages.

use std::sync::Arc;

use deeperhub_history::Stream;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::{HistoryOrder, HistoryRequest, HistoryStart};
use deeperhub_protocol::{Epoch, Topic};

use super::kept::CurrentStream;
use super::stored::{HistoryPage, ReadFailed, ReadRequest, StoredPage};
#[cfg(feature = "disk")]
use super::stored::{ReadPurpose, ReadResult};
use super::{HubShard, PageRequest, StreamRouter, Streams};
use crate::planted::planted;

/// Result of a read.
#[derive(Debug)]
pub(crate) enum HistoryRead {
    Page(HistoryPage),
    /// The messages are not in memory. They are read on another thread.
    Stored(StoredPage),
    /// The cluster's store has the messages, and no mirror of this node that could answer.
    InCluster(PageRequest),
}

/// State of a topic's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicHistory {
    /// Epoch of the stream.
    pub epoch: Epoch,
    /// Offset of the newest message, kept or not; 0 before the first message.
    pub offset: u64,
    /// Number of kept messages.
    pub messages: u64,
    /// Bytes of the kept messages that are in memory.
    pub bytes: u64,
    /// Offset of the oldest kept message; `None` if none is kept.
    pub oldest: Option<u64>,
}

impl Streams {
    /// Returns kept messages whose lengths are together at most `max_bytes`, but at least one
    /// message if there is one.
    ///
    /// A topic that has a rule and no stream yet gets none: reading costs no memory.
    pub(crate) fn read(
        &self,
        router: &StreamRouter,
        request: &HistoryRequest<'_>,
        max_bytes: usize,
    ) -> HistoryRead {
        if self.is_unread(router, &request.topic) {
            return HistoryRead::InCluster(PageRequest::new(request, max_bytes));
        }
        let at = self.clock.now();
        let now = self.clock.seconds(at);
        let read = self.with_stream(router, &request.topic, now, |current| {
            let CurrentStream { stream, oldest, name, .. } = *current;
            let position = stream.position(self.position_ms(stream, stream.newest(), at));
            let from = first_offset(request, oldest, stream);
            if let Some(disk_stream) = name.disk
                && from < stream.oldest()
                && from >= oldest
            {
                return HistoryRead::Stored(StoredPage {
                    request: ReadRequest {
                        stream: disk_stream,
                        topic: Arc::clone(&name.topic),
                        epoch: stream.epoch(),
                        from,
                        order: request.order,
                        limit: request.limit.into(),
                        max_bytes,
                    },
                    position,
                    oldest,
                    oldest_in_memory: stream.oldest(),
                });
            }
            let (frames, next) = page(stream, oldest, request, max_bytes);
            HistoryRead::Page(HistoryPage { position: Some(position), frames, next })
        });
        read.unwrap_or(HistoryRead::Page(HistoryPage { position: None, frames: Vec::new(), next: None }))
    }

    /// Returns `true` if a page that was just read can be sent before what a worker has not delivered
    /// yet.
    ///
    /// In a cluster, a page must not be ahead of a subscription by an epoch: the client could not tell
    /// whether the next gap leads to an earlier epoch than that of the page.
    pub(crate) fn may_answer_now(&self, router: &StreamRouter, shard: &HubShard) -> bool {
        self.cluster.is_none()
            || planted!(HistoryOvertakes)
            || shard.has_delivered(router.inbox_position(shard.id()))
    }

    /// Reads the messages of a page that only the store has. `done` gets the page on another thread.
    pub(crate) fn read_stored(
        &self,
        page: StoredPage,
        done: impl FnOnce(Result<HistoryPage, ReadFailed>) + Send + 'static,
    ) {
        #[cfg(feature = "disk")]
        if let Some(disk) = &self.disk {
            let request = page.request.clone();
            return disk.read(request, ReadPurpose::Answer, move |result: ReadResult| {
                done(result.map(|frames| page.finish(frames)));
            });
        }
        drop(page);
        done(Err(ReadFailed));
    }

    /// Returns `true` if the cluster keeps the stream of a topic, and this node has no mirror of it
    /// that could answer.
    pub(crate) fn is_unread(&self, router: &StreamRouter, topic: &Topic<'_>) -> bool {
        self.cluster.is_some()
            && self.rule(topic).is_some()
            && !router.update_kept(topic, |_, kept, stripe| {
                stripe.find(kept).is_some_and(|id| stripe.is_ready(id, None))
            })
    }

    /// Returns the state of a topic's history, or `None` if it has none.
    pub(crate) fn topic_history(&self, router: &StreamRouter, topic: &Topic<'_>) -> Option<TopicHistory> {
        if self.is_unread(router, topic) {
            return None;
        }
        let now = self.clock.seconds(self.clock.now());
        self.with_stream(router, topic, now, |&CurrentStream { stream, oldest, .. }| TopicHistory {
            epoch: stream.epoch(),
            offset: stream.newest(),
            messages: if is_dense(stream) { stream.newest() + 1 - oldest } else { stream.len() as u64 },
            bytes: stream.bytes().into(),
            oldest: if is_dense(stream) {
                (oldest <= stream.newest()).then_some(oldest)
            } else {
                stream.messages(..).next().map(|(offset, _)| offset)
            },
        })
    }
}

/// Returns `true` if each offset of a stream is of a message. The offsets of JetStream have holes.
fn is_dense(stream: &Stream<KeptFrame>) -> bool {
    stream.newest() + 1 - stream.oldest() == stream.len() as u64
}

/// Returns the offset with which a page starts.
fn first_offset(request: &HistoryRequest<'_>, oldest: u64, stream: &Stream<KeptFrame>) -> u64 {
    let newest = stream.newest();
    match (request.from, request.order) {
        (Some(HistoryStart::Offset(offset)), HistoryOrder::Ascending) => offset.max(oldest),
        (Some(HistoryStart::Offset(offset)), HistoryOrder::Descending) => {
            offset.clamp(oldest, newest.max(oldest))
        }
        (Some(HistoryStart::FromEnd(count)), _) if is_dense(stream) => {
            (newest + 1).saturating_sub(count).max(oldest)
        }
        (Some(HistoryStart::FromEnd(count)), _) => {
            let index = usize::try_from(count.saturating_sub(1)).unwrap_or(usize::MAX);
            stream.messages(..).rev().nth(index).map_or(oldest, |(offset, _)| offset)
        }
        (None, HistoryOrder::Ascending) => oldest,
        (None, HistoryOrder::Descending) => newest,
    }
}

/// Returns the messages in memory that a request names, and the offset with which to continue.
/// `oldest` is the oldest offset in memory or in the store.
fn page(
    stream: &Stream<KeptFrame>,
    oldest: u64,
    request: &HistoryRequest<'_>,
    max_bytes: usize,
) -> (Vec<KeptFrame>, Option<u64>) {
    let from = first_offset(request, oldest, stream);
    let mut messages: Box<dyn Iterator<Item = (u64, &KeptFrame)>> = match request.order {
        HistoryOrder::Ascending => Box::new(stream.messages(from..)),
        HistoryOrder::Descending => Box::new(stream.messages(..=from).rev()),
    };
    let (mut frames, mut bytes) = (Vec::new(), 0);
    for (offset, frame) in &mut messages {
        bytes += frame.len();
        if frames.len() == usize::from(request.limit) || (bytes > max_bytes && !frames.is_empty()) {
            return (frames, Some(offset));
        }
        frames.push(frame.clone());
    }
    let has_older = request.order == HistoryOrder::Descending && oldest < stream.oldest();
    (frames, has_older.then(|| stream.oldest() - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use deeperhub_history::{Evicted, Retention, Seconds};
    use deeperhub_protocol::frame::Frame;

    /// Returns a stream in which the messages 3 to 7 are kept. Each has ten bytes.
    fn stream() -> Stream<KeptFrame> {
        let mut stream = Stream::new(Epoch::from_bits(7));
        let bounds = Retention { messages: 5, bytes: 1000, ttl_seconds: 60 };
        for number in 1..=7 {
            stream.append(&bounds, Seconds::new(0), &mut Evicted::new(), |_, offset| {
                assert_eq!(offset, number);
                (Frame::text(&format!("message{offset}")).keep(), 10)
            });
        }
        stream
    }

    fn read(
        from: Option<HistoryStart>,
        limit: u16,
        order: HistoryOrder,
        max_bytes: usize,
    ) -> (Vec<u8>, Option<u64>) {
        let topic = Topic::parse("a").unwrap();
        let (frames, next) = page(&stream(), 3, &HistoryRequest { topic, from, limit, order }, max_bytes);
        (frames.iter().map(|frame| frame.as_bytes().last().unwrap() - b'0').collect(), next)
    }

    #[test]
    fn a_page_starts_at_an_offset_or_counts_from_the_end() {
        use HistoryOrder::{Ascending, Descending};
        use HistoryStart::{FromEnd, Offset};
        for (from, order, expected) in [
            (None, Ascending, &[3, 4, 5, 6, 7][..]),
            (None, Descending, &[7, 6, 5, 4, 3]),
            (Some(Offset(5)), Ascending, &[5, 6, 7]),
            (Some(Offset(5)), Descending, &[5, 4, 3]),
            // Below the oldest message, the page starts there.
            (Some(Offset(0)), Ascending, &[3, 4, 5, 6, 7]),
            (Some(Offset(1)), Descending, &[3]),
            (Some(Offset(8)), Ascending, &[]),
            (Some(Offset(u64::MAX)), Ascending, &[]),
            (Some(Offset(u64::MAX)), Descending, &[7, 6, 5, 4, 3]),
            (Some(FromEnd(2)), Ascending, &[6, 7]),
            (Some(FromEnd(2)), Descending, &[6, 5, 4, 3]),
            (Some(FromEnd(u64::MAX)), Ascending, &[3, 4, 5, 6, 7]),
        ] {
            assert_eq!(read(from, 1000, order, 1000), (expected.to_vec(), None), "{from:?} {order:?}");
        }
    }

    #[test]
    fn a_page_ends_at_its_limits_and_names_the_next_offset() {
        let ascending = HistoryOrder::Ascending;
        assert_eq!(read(None, 2, ascending, 1000), (vec![3, 4], Some(5)));
        assert_eq!(read(None, 5, ascending, 1000), (vec![3, 4, 5, 6, 7], None));
        assert_eq!(read(None, 1000, ascending, 25), (vec![3, 4], Some(5)));
        assert_eq!(read(None, 1000, ascending, 1), (vec![3], Some(4)));
        assert_eq!(read(None, 2, HistoryOrder::Descending, 1000), (vec![7, 6], Some(5)));
    }
}
