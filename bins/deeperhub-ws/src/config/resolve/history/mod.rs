//! Resolves the options under "Topics with history".

mod store;
#[cfg(test)]
mod tests;

use deeperhub_args::{Size, Time};
use deeperhub_listener::MemoryBudget;
use deeperhub_node::history::{Acknowledge, BudgetLimits, Rules};
use deeperhub_node::{Config, HistoryStore};

use self::store::StoreOptions;
use super::Resolver;
use crate::config::effective::{EffectiveSetting, OnReload};
use crate::config::options::{HistoryOptions, RULE_KEY, variable};
use crate::config::origin::SettingOrigin;

/// Divisor of the process's memory limit for the default of `history_bytes`.
const MEMORY_SHARE: u64 = 8;

/// Resolves rules and limits. `origins` are those of the rules. The memory limit of the process is
/// already resolved.
pub(super) fn resolve(
    resolver: &mut Resolver,
    options: HistoryOptions,
    origins: &[SettingOrigin],
    node: &mut Config,
) {
    let HistoryOptions {
        topic,
        history_bytes,
        max_streams,
        history_forget,
        history_store,
        history_dir,
        history_sync,
        history_disk_bytes,
    } = options;
    let rules = topic.unwrap_or_default();
    resolver.effective.push(EffectiveSetting::list(RULE_KEY, &rules, origins, OnReload::Applied));
    node.history.rules = Rules::new(rules.clone()).unwrap_or_else(|error| {
        resolver.conflict(format!(
            "{error}, in --{RULE_KEY}, {}, {RULE_KEY} and [[topics]] together",
            variable(RULE_KEY)
        ));
        Rules::default()
    });
    warn_of_shadowed_rules(resolver, &node.history.rules, origins);

    let budget = BudgetLimits::default();
    let memory = node.listener.memory.as_deref().map(MemoryBudget::limit);
    let default = memory.map_or(budget.bytes, |limit| (limit / MEMORY_SHARE).clamp(1, budget.bytes));
    let bytes = take!(resolver, live history_bytes, Size(default));
    resolver.require("history_bytes", &bytes, bytes.0 > 0, "expected more than 0");
    let streams = take!(resolver, live max_streams, budget.streams);
    let forget = take!(resolver, live history_forget, Time(budget.forget));
    let store = StoreOptions { history_store, history_dir, history_sync, history_disk_bytes };
    let kind = store::resolve(resolver, store, node);
    store::refuse_without_disk(resolver, kind, &rules, origins);
    node.history.budget = budget.with_bytes(bytes.0).with_streams(streams).with_forget(forget.0);
    if node.history.rules.keep_history() {
        warn_of_large_history(resolver, bytes, memory);
        warn_of_few_streams(resolver, &node.history.rules, streams);
    }
}

/// Reports an error if rules wait for a disk: in a cluster, the broker keeps the history.
pub(super) fn refuse_disk_in_cluster(resolver: &mut Resolver, node: &mut Config, origins: &[SettingOrigin]) {
    if node.cluster.is_none() {
        return;
    }
    if node.history_store != HistoryStore::Memory {
        node.history_store = HistoryStore::Memory;
        resolver.warnings.push(format!(
            "{} has no effect with {}, because the cluster's broker keeps the history",
            resolver.name_of("history_store"),
            resolver.name_of("cluster"),
        ));
    }
    if !node.history.rules.keep_history() {
        return;
    }
    for ((_, rule), origin) in node.history.rules.iter().zip(origins) {
        if rule.policy().acknowledge() == Acknowledge::Disk {
            resolver.conflict(format!(
                "the rule `{rule}` ({}) has ack=disk, and the cluster's broker keeps the history; use \
                 ack=memory, which waits for the broker",
                origin.label(RULE_KEY),
            ));
        }
    }
}

/// Warns of rules that no topic gets, because an earlier rule matches all of their topics.
fn warn_of_shadowed_rules(resolver: &mut Resolver, rules: &Rules, origins: &[SettingOrigin]) {
    let rules: Vec<_> = rules.iter().map(|(_, rule)| rule).zip(origins).collect();
    for (index, (rule, origin)) in rules.iter().enumerate() {
        let earlier = rules.iter().take(index);
        let mut covering = earlier.filter(|(earlier, _)| earlier.pattern().covers(rule.pattern()));
        if let Some((earlier, earlier_origin)) = covering.next() {
            resolver.warnings.push(format!(
                "no topic gets the rule `{rule}` ({}), because `{earlier}` ({}) comes first",
                origin.label(RULE_KEY),
                earlier_origin.label(RULE_KEY),
            ));
        }
    }
}

/// Warns if the history alone can fill the memory from which on connections are refused.
fn warn_of_large_history(resolver: &mut Resolver, bytes: Size, memory: Option<u64>) {
    let Some(memory) = memory else { return };
    let refused_from = memory / 100 * MemoryBudget::REFUSE_PERCENT;
    if bytes.0 >= refused_from {
        resolver.warnings.push(format!(
            "{} is {bytes}, and connections are refused from {} on ({} % of {})",
            resolver.name_of("history_bytes"),
            Size(refused_from),
            MemoryBudget::REFUSE_PERCENT,
            resolver.name_of("max_memory"),
        ));
    }
}

/// Warns if rules with `max_streams` leave no streams to those without.
fn warn_of_few_streams(resolver: &mut Resolver, rules: &Rules, streams: u64) {
    let keeping = || rules.iter().map(|(_, rule)| rule.policy()).filter(|policy| policy.keeps_history());
    let named: u64 = keeping().filter_map(|policy| policy.max_streams()).map(u64::from).sum();
    let has_unnamed = keeping().any(|policy| policy.max_streams().is_none());
    if named >= streams && has_unnamed {
        resolver.warnings.push(format!(
            "rules with max_streams may use all {streams} of {}, so each rule without it gets one topic",
            resolver.name_of("max_streams"),
        ));
    }
}
