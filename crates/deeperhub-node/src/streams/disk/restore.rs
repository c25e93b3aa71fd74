//! The streams that were on the disk when the node started.

use std::sync::Arc;

use deeperhub_history::{Predecessor, Restored, StoredPart, Stream};
use deeperhub_protocol::Topic;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_store::{Record, RecoveredStream, Wanted};

use super::message::StoredMessage;
use super::{Found, OpenError};
use crate::streams::kept::Remains;
use crate::streams::stored::{DiskStream, StreamName};
use crate::streams::{StreamRouter, Streams, find_rule};

/// Usual length of a delivery without its payload, the topic and its publisher's ID, so that the
/// limits of a rule mean about the same for messages that only the store has.
const FRAME_OVERHEAD: usize = 110;

fn frame_overhead(topic: &str) -> usize {
    FRAME_OVERHEAD + topic.len()
}

impl Streams {
    /// Fills the streams with what the store has kept, the newest messages first, until the budget
    /// is used up. Streams that no rule wants are removed from the store.
    ///
    /// # Errors
    ///
    /// Returns an error if a file cannot be read.
    pub(crate) fn restore(&self, router: &StreamRouter, found: Found) -> Result<(), OpenError> {
        let budget = self.budget.load_full();
        let at = self.clock.now();
        let (now, now_ms) = (self.clock.seconds(at), self.clock.unix_ms(at));
        tracing::info!(
            topics = found.len(),
            clean = found.was_clean(),
            lost_bytes = found.lost_bytes(),
            "History store opened"
        );
        let wanted = |topic: &str| {
            let parsed = Topic::parse(topic).ok();
            let rule = parsed.and_then(|topic| budget.rules().get(find_rule(&budget, &topic)?));
            rule.map_or(Wanted { messages: 0, bytes: 0, since_ms: 0, overhead: 0 }, |rule| {
                let bounds = rule.policy().retention();
                Wanted {
                    messages: bounds.messages as usize,
                    bytes: bounds.bytes as usize,
                    since_ms: now_ms.saturating_sub(u64::from(bounds.ttl_seconds) * 1000),
                    overhead: frame_overhead(topic) + KeptFrame::OVERHEAD_BYTES as usize,
                }
            })
        };
        let max_bytes = usize::try_from(budget.limit_bytes()).unwrap_or(usize::MAX);
        found.load(max_bytes, wanted, |found| {
            let (id, name) = (found.id, Arc::clone(&found.topic));
            let parsed = Topic::parse(&*name).ok();
            let rule = parsed.and_then(|topic| Some((find_rule(&budget, &topic)?, topic)));
            let Some((rule, topic)) = rule else { return self.remove_stored(id) };
            let stream = self.restored(found);
            let mut remains = Remains::default();
            let restored = router.update_kept(&topic, |topic, kept, stripe| {
                let name = StreamName { topic: Arc::clone(topic.name()), disk: Some(id), mirror: None };
                kept.restore(stripe, (rule, name), stream, now, &mut remains)
            });
            if !restored {
                self.remove_stored(id);
            }
            self.finish(router, remains, now);
        })
    }

    fn remove_stored(&self, stream: DiskStream) {
        if let Some(disk) = &self.disk {
            disk.remove(stream);
        }
    }

    /// Returns a stream with the deliveries of its messages.
    fn restored(&self, found: RecoveredStream) -> Stream<KeptFrame> {
        let RecoveredStream { topic, epoch, predecessor, newest, records, older, .. } = found;
        let predecessor = predecessor
            .map(|predecessor| Predecessor { epoch: predecessor.epoch, newest: predecessor.newest });
        let mut restored = Vec::with_capacity(records.len());
        let first = records.first().map_or(newest + 1, |record| record.offset);
        let ends = older.iter().skip(1).map(|part| part.offset).chain([first]);
        let parts = older.iter().zip(ends).map(|(part, end)| StoredPart {
            offset: part.offset,
            bytes: part.bytes + (end - part.offset) * frame_overhead(&topic) as u64,
            at: self.clock.seconds_of_unix_ms(part.time_ms),
        });
        let mut older: Vec<_> = parts.collect();
        for Record { offset, time_ms, bytes } in records {
            let frame = StoredMessage::parse(&bytes)
                .and_then(|message| message.frame(&topic, epoch, (offset, time_ms)));
            match frame {
                Some(message) => {
                    let (bytes, at) = (self.charge(message.len()), self.clock.seconds_of_unix_ms(time_ms));
                    restored.push(Restored { message, bytes, at });
                }
                // Kept messages have no holes.
                None => {
                    restored.clear();
                    older.clear();
                }
            }
        }
        Stream::restore(epoch, newest, predecessor, restored).with_stored(older)
    }
}
