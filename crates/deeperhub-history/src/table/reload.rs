//! Changes of the rules and limits of a table.

use std::sync::Arc;

use super::queues::{Queued, RuleQueues};
use super::{Entry, StreamId, StreamTable};
use crate::budget::Budget;
use crate::cursor::Cursor;
use crate::evicted::Evicted;
use crate::rules::RuleId;

/// A stream that new rules have removed from its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemovedStream<N> {
    /// The number that it had.
    pub id: StreamId,
    /// The name.
    pub name: N,
    /// Place of a subscriber that got everything.
    pub end: Cursor,
    /// `true` if the stream has subscribers.
    pub is_followed: bool,
}

impl<M, N> StreamTable<M, N> {
    /// Changes the rules and limits. `find` returns the new rule of a stream. Streams without a rule
    /// that keeps messages are removed.
    ///
    /// A stream takes the new bounds when it is next used. Streams that exceed a lower maximum
    /// number stay until others take their place.
    pub fn set_budget(
        &mut self,
        budget: Arc<Budget>,
        mut find: impl FnMut(&N) -> Option<RuleId>,
        evicted: &mut Evicted<M>,
    ) -> Vec<RemovedStream<N>> {
        let mut removed = Vec::new();
        let rule_of = |entry: &Entry<M, N>, find: &mut dyn FnMut(&N) -> Option<RuleId>| {
            let rule = find(&entry.name)?;
            budget.rules().get(rule).is_some_and(|rule| rule.policy().keeps_history()).then_some(rule)
        };
        let mut kept = Vec::new();
        for index in 0..self.entries.len() {
            let Some(entry) = &self.entries[index] else { continue };
            let id = StreamId { index: index as u32, generation: entry.generation };
            match rule_of(entry, &mut find) {
                Some(rule) => kept.push((id, rule)),
                None => {
                    let end = Cursor::new(entry.stream.epoch(), entry.stream.live_offset());
                    let is_followed = entry.is_followed;
                    let name = self.remove(id, evicted);
                    removed.extend(name.map(|name| RemovedStream { id, name, end, is_followed }));
                }
            }
        }
        let previous = std::mem::replace(&mut self.budget, budget);
        self.queues = RuleQueues::for_rules(&self.budget);
        let overhead = self.budget.message_overhead();
        for (id, rule) in kept {
            let Some(entry) = self.entry_mut(id) else { continue };
            let previous_rule = std::mem::replace(&mut entry.rule, rule);
            let freed = entry.stream.charge(previous.message_overhead());
            entry.queued = Queued::default();
            let added = entry.stream.charge(overhead);
            previous.adjust(previous_rule, 0, freed);
            previous.remove_stream(previous_rule);
            self.budget.add_stream(rule);
            self.budget.adjust(rule, added, 0);
            self.queues[rule.index()].streams += 1;
            self.enqueue(id);
        }
        removed
    }
}
