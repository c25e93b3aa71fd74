//! A model of Redis with the rules of the store's script.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use deeperhub_cluster::simulation::{QueuedAppend, stored_envelope};
use deeperhub_cluster::{
    Appended, ResetStream, ResetWhen, StorePosition, StreamLimits, StreamRange, StreamRead, StreamTop,
};
use deeperhub_protocol::Topic;

use super::plants::{ModelBug, is_broken};
use super::store::Given;

/// Time for which a publish with `once` is remembered.
pub(super) const ONCE_MS: u64 = 120_000;

/// Nodes whose fences a topic has.
const MAX_FENCES: usize = 16;

/// A message that the store keeps.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) position: StorePosition,
    time: u64,
    /// Bytes that name the message.
    identity: Box<[u8]>,
    pub(super) bytes: Bytes,
}

/// The last append of a node. Those up to it were appended.
#[derive(Debug, Clone, Copy)]
struct Fence {
    incarnation: u64,
    sequence: u64,
}

#[derive(Debug, Clone)]
struct Meta {
    epoch: u64,
    top: u64,
    fences: Vec<Fence>,
    /// Time at which the store forgets it.
    until: u64,
}

#[derive(Debug, Clone, Default)]
struct TopicState {
    meta: Option<Meta>,
    list: VecDeque<Arc<Entry>>,
    list_until: u64,
    /// Publishes with `once`, by user and text.
    once: BTreeMap<(String, String), Appended>,
}

/// Result of an append.
#[derive(Debug)]
pub(super) struct AppendResult {
    /// `None` if the message is a late original.
    pub(super) outcome: Option<Appended>,
    /// The new entry, which is sent to the nodes that follow the topic.
    pub(super) entry: Option<Arc<Entry>>,
}

/// The streams of one server. A copy is a replica.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    topics: BTreeMap<String, TopicState>,
}

impl Server {
    /// Returns the state of a topic without what has expired.
    fn topic(&mut self, topic: &str, now: u64) -> &mut TopicState {
        let state = self.topics.entry(topic.to_owned()).or_default();
        state.meta.take_if(|meta| meta.until <= now);
        if state.list_until <= now {
            state.list.clear();
        }
        state.once.retain(|_, appended| now - appended.time.min(now) < ONCE_MS);
        state
    }

    /// Returns epoch and top of a topic; zeros if the store does not know it.
    fn position(&mut self, topic: &str, now: u64) -> StorePosition {
        match &self.topic(topic, now).meta {
            Some(meta) => StorePosition { epoch: meta.epoch, offset: meta.top },
            None => StorePosition { epoch: 0, offset: 0 },
        }
    }

    /// Returns `true` if a node knows a later position.
    fn is_behind(&mut self, topic: &str, known: Option<StorePosition>, now: u64) -> bool {
        let own = self.position(topic, now);
        own.epoch == 0 || known.is_some_and(|known| known > own)
    }

    fn begin(
        &mut self,
        topic: &str,
        known: Option<StorePosition>,
        now: u64,
        (keep, given): (u64, &mut Given),
    ) {
        let own = self.position(topic, now).epoch;
        let last = self.topic(topic, now).list.back().map_or(0, |entry| entry.position.epoch);
        let known = known.map_or(0, |known| known.epoch);
        let epoch = if is_broken(ModelBug::EpochReused) && own > 0 {
            own
        } else {
            given.new_epoch(now.max(own + 1).max(known + 1).max(last + 1))
        };
        let state = self.topic(topic, now);
        state.list.clear();
        let fences = state.meta.take().map(|meta| meta.fences).unwrap_or_default();
        state.meta = Some(Meta { epoch, top: 0, fences, until: now + keep });
    }

    /// Appends a message.
    pub(super) fn append(
        &mut self,
        append: &QueuedAppend,
        is_resent: bool,
        now: u64,
        given: &mut Given,
    ) -> AppendResult {
        let topic = append.topic.as_str();
        let keep = keep_ms(append.limits);
        let (incarnation, sequence) = append.origin();
        let mut fences =
            self.topic(topic, now).meta.as_ref().map(|meta| meta.fences.clone()).unwrap_or_default();
        let own = fences.iter().position(|fence| fence.incarnation == incarnation);
        let own = own.map(|index| fences.remove(index));
        let mut was_appended = own.is_some_and(|fence| sequence <= fence.sequence);
        if !is_resent && was_appended {
            return AppendResult { outcome: None, entry: None };
        }
        fences.truncate(MAX_FENCES - 1);
        fences.insert(0, Fence { incarnation, sequence });
        if self.is_behind(topic, append.known, now) {
            self.begin(topic, append.known, now, (keep, given));
            was_appended = false;
        } else if is_resent && (was_appended || own.is_none()) && !is_broken(ModelBug::ResendAppended) {
            let state = self.topic(topic, now);
            let found = state.list.iter().rev().find(|entry| *entry.identity == *append.identity());
            if let Some(entry) = found {
                let outcome = Appended { position: entry.position, time: entry.time, is_repeat: false };
                return AppendResult { outcome: Some(outcome), entry: None };
            }
        }
        let StorePosition { epoch, offset: top } = self.position(topic, now);
        if let Some(once) = &append.once
            && let Some(before) = self.topic(topic, now).once.get(once)
            && before.position.epoch == epoch
            && !is_broken(ModelBug::OnceIgnored)
        {
            return AppendResult { outcome: Some(Appended { is_repeat: true, ..*before }), entry: None };
        }
        if is_resent && was_appended && !is_broken(ModelBug::ResendAppended) {
            return AppendResult { outcome: None, entry: None };
        }
        let offset = top + 1;
        let position = StorePosition { epoch, offset };
        let prev = if is_broken(ModelBug::PrevWrong) { top.saturating_sub(1) } else { top };
        let entry = Arc::new(Entry {
            position,
            time: now,
            identity: append.identity().into(),
            bytes: append.stored(position, prev, now),
        });
        let outcome = Appended { position, time: now, is_repeat: false };
        let state = self.topic(topic, now);
        state.list.push_back(Arc::clone(&entry));
        while state.list.len() > append.limits.messages as usize {
            state.list.pop_front();
        }
        state.list_until = now + append.limits.ttl.as_millis() as u64;
        state.meta = Some(Meta { epoch, top: offset, fences, until: now + keep });
        if let Some(once) = &append.once {
            state.once.insert(once.clone(), outcome);
        }
        let offset = offset - u64::from(is_broken(ModelBug::OutcomeWrong));
        let told = Appended { position: StorePosition { offset, ..position }, ..outcome };
        AppendResult { outcome: Some(told), entry: Some(entry) }
    }

    /// Answers a read with at most `max` messages.
    pub(super) fn read(&mut self, read: &StreamRead, max: usize, now: u64, given: &mut Given) -> StreamRange {
        let topic = read.topic.as_str();
        let keep = keep_ms(read.limits);
        let mut top = self.position(topic, now);
        if top.epoch == 0 {
            if !read.creates {
                return StreamRange {
                    top: None,
                    oldest: 0,
                    time: now,
                    messages: Vec::new(),
                    is_cut: false,
                    kept: 0,
                    whole: None,
                };
            }
            self.begin(topic, read.after, now, (keep, given));
            top = self.position(topic, now);
        }
        let after = read.after.filter(|after| after.epoch == top.epoch);
        let state = self.topic(topic, now);
        let wanted = read.messages as usize;
        let min_time = now.saturating_sub(read.limits.ttl.as_millis() as u64);
        let is_kept = |entry: &&Arc<Entry>| {
            entry.time >= min_time && entry.position.epoch == top.epoch && entry.position.offset <= top.offset
        };
        let kept: Vec<_> = state.list.iter().filter(is_kept).cloned().collect();
        let oldest = kept.first().map_or(top.offset + 1, |entry| entry.position.offset);
        let (mut entries, is_cut) = match after {
            Some(after) => {
                let rest = kept.iter().filter(|entry| entry.position.offset > after.offset);
                let entries: Vec<_> = rest.take(wanted.min(max)).cloned().collect();
                let has_more = entries.last().is_some_and(|entry| entry.position.offset < top.offset);
                (entries, has_more && max < wanted)
            }
            None => {
                let count = kept.len().min(wanted).min(max);
                (kept[kept.len() - count..].to_vec(), count < kept.len().min(wanted))
            }
        };
        if is_broken(ModelBug::ReadLacksLast) && entries.len() > 1 {
            entries.pop();
        }
        let parsed = Topic::parse(topic.to_owned()).unwrap();
        let message = |entry: &Arc<Entry>| stored_envelope(entry.bytes.clone(), &parsed, top.epoch).unwrap();
        let messages = entries.iter().map(message).collect();
        let kept = kept.len() as u64;
        StreamRange { top: Some(top), oldest, time: now, messages, is_cut, kept, whole: None }
    }

    /// Returns the newest position of a topic, and remembers it longer.
    pub(super) fn top(&mut self, topic: &str, remember_ms: Option<u64>, now: u64) -> StreamTop {
        let position = self.position(topic, now);
        if let (Some(keep), Some(meta)) = (remember_ms, &mut self.topic(topic, now).meta) {
            meta.until = now + keep;
        }
        StreamTop {
            position: Some(position).filter(|position| position.epoch > 0),
            time: now,
            progress: None,
        }
    }

    /// Starts a new stream if the condition holds. Also returns `true` if it did.
    pub(super) fn reset(
        &mut self,
        reset: &ResetStream,
        now: u64,
        given: &mut Given,
    ) -> (StorePosition, bool) {
        let topic = reset.topic.as_str();
        let own = self.position(topic, now);
        let begins = match reset.when {
            ResetWhen::Always => true,
            ResetWhen::StoreIsBehind => self.is_behind(topic, reset.known, now),
            ResetWhen::StoreHasRewritten => own.epoch <= reset.known.map_or(0, |known| known.epoch),
        };
        if begins {
            self.begin(topic, reset.known, now, (keep_ms(reset.limits), given));
        }
        (self.position(topic, now), begins)
    }

    /// Loses what belongs to a topic: its messages, its position, or both.
    pub(super) fn evict(&mut self, topic: &str, what: u8) {
        let Some(state) = self.topics.get_mut(topic) else { return };
        if what != 0 {
            state.meta = None;
        }
        if what != 1 {
            state.list.clear();
        }
    }

    /// Returns the epoch and the kept messages of a topic.
    pub(super) fn content(&mut self, topic: &str, now: u64) -> (StorePosition, Vec<Arc<Entry>>) {
        let position = self.position(topic, now);
        (position, self.topic(topic, now).list.iter().cloned().collect())
    }
}

fn keep_ms(limits: StreamLimits) -> u64 {
    (limits.ttl + limits.forget).as_millis() as u64
}
