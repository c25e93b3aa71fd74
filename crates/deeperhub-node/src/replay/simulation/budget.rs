//! Checks of the budget of all streams.

use std::sync::Arc;

use deeperhub_history::{Budget, EvictionReason, RuleId};
use deeperhub_protocol::Topic;

use super::topics::TOPICS;
use super::world::World;
use crate::metrics::EvictionLabel;

/// Bytes and share of each rule, and the numbers of evictions that are not for the budget.
type Usage = (Vec<(u64, u64)>, [u64; 2]);

impl World {
    /// Returns the rules that are in force.
    pub(super) fn budget(&self) -> Option<Arc<Budget>> {
        let rule = |name: &&str| self.streams.rule(&Topic::parse(*name).unwrap());
        TOPICS.iter().find_map(rule).map(|(budget, _)| Arc::clone(&budget))
    }

    /// Checks that a topic was rightly refused.
    pub(super) fn check_is_full(&self, topic: usize) -> Result<(), String> {
        let (budget, rule) = self.streams.rule(&Topic::parse(TOPICS[topic]).unwrap()).unwrap();
        let usage = budget.usage(rule).unwrap();
        let is_full = usage.streams >= usage.max_streams
            || budget.streams()
                >= budget
                    .rules()
                    .iter()
                    .filter_map(|(id, _)| Some(budget.usage(id)?.max_streams))
                    .max()
                    .unwrap_or(0);
        if is_full { Ok(()) } else { Err(format!("{} was refused with {usage:?}", TOPICS[topic])) }
    }

    /// Sweeps all stripes and checks the budget.
    pub(super) fn sweep(&mut self) -> Result<(), String> {
        let now = self.clock.seconds(self.now());
        for stripe in self.router.stripes() {
            while self.streams.sweep(&self.router, stripe, now) {}
        }
        self.check()?;
        let Some(budget) = self.budget() else { return Ok(()) };
        let count = |stripe| self.router.update_stripe(stripe, |stripe| stripe.table.len());
        let streams: usize = self.router.stripes().filter_map(count).sum();
        if streams as u64 != budget.streams() {
            return Err(format!("{streams} streams are counted as {}", budget.streams()));
        }
        // Messages stay of rules that are above their share by less than one message.
        let slack = budget.rules().len() as u64 * 800;
        if budget.bytes() > budget.limit_bytes() + slack {
            return Err(format!("{} bytes are kept within {}", budget.bytes(), budget.limit_bytes()));
        }
        Ok(())
    }

    /// Returns what each rule uses, and the numbers of evictions that are not for the budget.
    pub(super) fn usage(&self) -> Usage {
        let rules = |budget: &Arc<Budget>| {
            let usage = |(id, _)| budget.usage(id).map(|usage| (usage.bytes, usage.share_bytes));
            budget.rules().iter().filter_map(usage).collect()
        };
        let count = |reason| self.streams.metrics.evicted.value(EvictionLabel(reason));
        let counts = [EvictionReason::Age, EvictionReason::Removed].map(count);
        (self.budget().as_ref().map(rules).unwrap_or_default(), counts)
    }

    /// Checks that no rule but `own` went below its share.
    pub(super) fn check_shares(&self, before: Usage, own: Option<RuleId>) -> Result<(), String> {
        let after = self.usage();
        if after.1 != before.1 {
            return Ok(());
        }
        for (index, ((before, _), (bytes, share))) in before.0.into_iter().zip(after.0).enumerate() {
            let is_other = own.is_none_or(|own| own.index() != index);
            if is_other && bytes < before.min(share) {
                return Err(format!("rule {index} fell from {before} to {bytes} bytes below {share}"));
            }
        }
        Ok(())
    }
}
