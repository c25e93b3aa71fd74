//! The order in which streams and messages leave a table: by age, by idle time, and within the
//! budget.

use super::{StreamId, StreamTable, live_entry};
use crate::budget::Budget;
use crate::evicted::{Evicted, EvictionReason};
use crate::expiry::TimeQueue;
use crate::policy::Policy;
use crate::rules::RuleId;
use crate::seconds::Seconds;

/// The queues that a stream is in.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Queued {
    pub(super) by_age: bool,
    pub(super) idle: bool,
    pub(super) spent: bool,
}

/// Streams of one rule by different times.
#[derive(Debug)]
pub(super) struct RuleQueues {
    /// Streams with messages, by the time of their oldest message. All of them have the same `ttl`,
    /// so this is also the order of expiry.
    pub(super) by_age: TimeQueue<StreamId>,
    /// Streams without subscribers, by the time of the last use.
    pub(super) idle: TimeQueue<StreamId>,
    /// Streams without subscribers and messages, by the time since which this holds.
    pub(super) spent: TimeQueue<StreamId>,
    /// Number of the rule's streams in this table.
    pub(super) streams: usize,
}

impl<M, N> StreamTable<M, N> {
    /// Notes the time since which a stream has neither messages nor subscribers.
    pub(super) fn note_spent(&mut self, id: StreamId, now: Seconds) {
        let ttl =
            self.rule(id).and_then(|rule| self.policy(rule)).map(|policy| policy.retention().ttl_seconds);
        if let Some(entry) = self.entry_mut(id)
            && entry.is_spent()
        {
            // Messages that only a store has count until they expire.
            let stored_at = entry.stream.stored_at().filter(|_| ttl.is_some());
            let stored_until = stored_at.map(|at| Seconds::new(at.get().saturating_add(ttl.unwrap_or(0))));
            entry.spent_since = stored_until.map_or(now, |until| until.max(now));
        }
    }

    /// Adds a stream to the queues in which it belongs and is not yet.
    pub(super) fn enqueue(&mut self, id: StreamId) {
        let entries = &mut self.entries;
        let Some(entry) = live_entry(entries, id) else { return };
        let (touched, spent_since, oldest_at) = (entry.touched, entry.spent_since, entry.stream.oldest_at());
        let by_age = oldest_at.filter(|_| !entry.queued.by_age);
        let idle = !entry.is_followed && !entry.queued.idle;
        let spent = entry.is_spent() && !entry.queued.spent;
        entry.queued.by_age |= by_age.is_some();
        entry.queued.idle |= idle;
        entry.queued.spent |= spent;
        let Some(queues) = self.queues.get_mut(entry.rule.index()) else { return };
        let streams = queues.streams;
        let mut is_live = |id| live_entry(entries, id).is_some();
        if let Some(at) = by_age {
            queues.by_age.push(at, id, streams, &mut is_live);
        }
        if idle {
            queues.idle.push(touched, id, streams, &mut is_live);
        }
        if spent {
            queues.spent.push(spent_since, id, streams, &mut is_live);
        }
    }

    /// Returns the stream of a rule with the oldest message, and the time of that message.
    pub(super) fn oldest_of(&mut self, rule: RuleId) -> Option<(Seconds, StreamId)> {
        let (queues, entries) = (self.queues.get_mut(rule.index())?, &mut self.entries);
        queues.by_age.front(|id| {
            let entry = live_entry(entries, id)?;
            let oldest_at = entry.stream.oldest_at();
            entry.queued.by_age = oldest_at.is_some();
            oldest_at
        })
    }

    /// Evicts at most `max` expired messages of a rule. Returns their number.
    pub(super) fn expire(
        &mut self,
        rule: RuleId,
        now: Seconds,
        max: usize,
        evicted: &mut Evicted<M>,
    ) -> usize {
        let Some(ttl) = self.policy(rule).map(|policy| policy.retention().ttl_seconds) else { return 0 };
        let Some(newest_expired) = newest_expired(ttl, now) else { return 0 };
        let mut count = 0;
        while count < max
            && self.queues[rule.index()].by_age.may_have(newest_expired)
            && let Some((at, id)) = self.oldest_of(rule)
            && at <= newest_expired
        {
            self.change(id, now, |stream| {
                while count < max && stream.oldest_at().is_some_and(|at| at <= newest_expired) {
                    stream.evict(EvictionReason::Age, evicted);
                    count += 1;
                }
            });
        }
        count
    }

    /// Returns a stream of a rule whose time without messages and subscribers is over.
    pub(super) fn forgettable(&mut self, rule: RuleId, now: Seconds) -> Option<StreamId> {
        let last = Seconds::new(now.get().checked_sub(self.budget.forget_seconds().saturating_add(1))?);
        let (queues, entries) = (self.queues.get_mut(rule.index())?, &mut self.entries);
        if !queues.spent.may_have(last) {
            return None;
        }
        let (since, id) = queues.spent.front(|id| {
            let entry = live_entry(entries, id)?;
            entry.queued.spent = entry.is_spent();
            entry.queued.spent.then_some(entry.spent_since)
        })?;
        (since <= last).then_some(id)
    }

    /// Evicts the oldest messages of this table, of rules above their share, until the budget holds.
    /// Evicts at most `max` messages and returns their number. `own` is the rule that needs room: it
    /// may go below its share by a part of a message.
    pub(super) fn evict_over_budget(
        &mut self,
        own: Option<RuleId>,
        now: Seconds,
        max: usize,
        evicted: &mut Evicted<M>,
    ) -> usize {
        let mut count = 0;
        while count < max
            && self.budget.excess() > 0
            && let Some((rule, id, charge)) = self.evictable(own)
            // Another thread may have evicted messages of this rule meanwhile.
            && self.budget.try_take(rule, charge, own == Some(rule))
        {
            let bounds = self.policy(rule).map(Policy::retention).filter(|_| self.has_store);
            if let Some(entry) = self.entry_mut(id) {
                match bounds {
                    Some(bounds) => entry.stream.evict_stored(&bounds, now, evicted),
                    None => entry.stream.evict(EvictionReason::Budget, evicted),
                };
                self.messages -= 1;
                self.note_spent(id, now);
                self.enqueue(id);
            }
            count += 1;
        }
        count
    }

    /// Returns the stream with the oldest message of all rules above their share, with its rule and
    /// the message's charge.
    pub(super) fn evictable(&mut self, own: Option<RuleId>) -> Option<(RuleId, StreamId, u64)> {
        let mut oldest: Option<(Seconds, RuleId, StreamId, u64)> = None;
        for index in 0..self.queues.len() {
            let rule = RuleId::from_index(index);
            if self.queues[index].by_age.is_empty() || !self.budget.is_over_share(rule) {
                continue;
            }
            let Some((at, id)) = self.oldest_of(rule) else { continue };
            let overhead = self.budget.message_overhead();
            let Some(charge) = self.get(id).and_then(|stream| stream.oldest_charge(overhead)) else {
                continue;
            };
            let is_older = oldest.is_none_or(|(oldest_at, ..)| at < oldest_at);
            if is_older && self.budget.may_take(rule, charge, own == Some(rule)) {
                oldest = Some((at, rule, id, charge));
            }
        }
        oldest.map(|(_, rule, id, charge)| (rule, id, charge))
    }

    /// Returns the stream of a rule that has no subscriber and was idle longest.
    pub(super) fn idlest(&mut self, rule: RuleId) -> Option<StreamId> {
        let (queues, entries) = (self.queues.get_mut(rule.index())?, &mut self.entries);
        let (_, id) = queues.idle.front(|id| {
            let entry = live_entry(entries, id)?;
            entry.queued.idle = !entry.is_followed;
            entry.queued.idle.then_some(entry.touched)
        })?;
        Some(id)
    }
}

impl RuleQueues {
    /// Returns `true` if a message of the rule may have expired.
    #[inline]
    pub(super) fn has_expired(&self, ttl_seconds: u32, now: Seconds) -> bool {
        newest_expired(ttl_seconds, now).is_some_and(|newest| self.by_age.may_have(newest))
    }

    pub(super) fn for_rules(budget: &Budget) -> Vec<Self> {
        let empty = |_| Self {
            by_age: TimeQueue::new(),
            idle: TimeQueue::new(),
            spent: TimeQueue::new(),
            streams: 0,
        };
        budget.rules().iter().map(empty).collect()
    }
}

/// Returns the time at and before which messages have expired.
#[inline]
fn newest_expired(ttl_seconds: u32, now: Seconds) -> Option<Seconds> {
    now.get().checked_sub(ttl_seconds.saturating_add(1)).map(Seconds::new)
}
