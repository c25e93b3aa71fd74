//! Decides for each name whether it has its own subscription at the broker or a pattern covers it.
//!
//! Terms: a pattern *covers* a name if it matches all topics that the name matches. A *crowd* is a
//! set of subscribed patterns that match a common topic. A name *lingers* while it has no
//! subscriber but keeps its subscription. A pattern *retires*: its covered names are placed
//! elsewhere, and then it is unsubscribed. A *sweep* finds subscribed names that a new pattern
//! covers.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use tracing::info;

use super::{Changes, MAX_LINGERING_BYTES};
use crate::cover::{Patterns, is_pattern, join, literal_prefix, shorten};

/// Memory that a name costs in addition to its bytes.
const NAME_OVERHEAD_BYTES: usize = 128;

/// Maximum number of subscribed patterns that match a common topic, and so of copies of a message.
pub(super) const MAX_COPIES: usize = 4;

/// Number of covered patterns at which the broader pattern of a former crowd retires. Smaller than
/// [`MAX_COPIES`], so that a crowd that changes by one pattern does not switch back and forth.
pub(super) const SMALL_CROWD: usize = MAX_COPIES / 2;

/// Delay before the names that a new pattern covers are unsubscribed. A pattern that is removed
/// within this time does not affect them.
pub(super) const SWEEP_DELAY: Duration = Duration::from_secs(1);

/// All names and their placement.
#[derive(Debug)]
pub(super) struct Placements {
    pub(super) names: BTreeMap<Arc<str>, NameEntry>,
    /// Subscribed patterns, without retiring ones.
    pub(super) patterns: Patterns,
    /// Names that each pattern covers, and that would have their own subscription without it.
    pub(super) covered: HashMap<Arc<str>, Covered, RandomState>,
    /// Names to subscribe to or to find a cover for.
    pub(super) unplaced: VecDeque<Arc<str>>,
    /// Names without a subscriber and the times at which they end, roughly in order of time. Some
    /// of these names have a subscriber again.
    pub(super) lingering: VecDeque<(Instant, Arc<str>)>,
    pub(super) lingering_bytes: usize,
    /// Retiring patterns, in this order.
    pub(super) retiring: VecDeque<Arc<str>>,
    /// Time of the next sweep, and the common prefix of the names that new patterns may cover.
    pub(super) unswept: Option<(Instant, String)>,
    pub(super) sweep: Option<Sweep>,
    /// Number of subscriptions at the broker.
    pub(super) subscribed: usize,
    pub(super) bytes: usize,
    /// Time of the current call of `take`.
    pub(super) now: Instant,
}

/// Scan of all names with a prefix, to find the names that a pattern now covers.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) prefix: String,
    /// Last name visited.
    pub(super) after: Option<Arc<str>>,
}

/// Names that one pattern covers.
#[derive(Debug, Default)]
pub(super) struct Covered {
    pub(super) names: BTreeSet<Arc<str>>,
    /// Number of patterns among them.
    pub(super) patterns: usize,
}

/// State of one name.
#[derive(Debug, Clone, Default)]
pub(super) struct NameEntry {
    /// `true` if the node has a subscriber of the name.
    pub(super) is_wanted: bool,
    /// `true` if the name is in `unplaced`.
    pub(super) is_unplaced: bool,
    /// End time of a name without a subscriber. While set, the name is in `lingering`.
    pub(super) lingers_until: Option<Instant>,
    /// For a pattern that replaces others: it retires when it covers fewer patterns than this. 0
    /// for all other names.
    pub(super) min_patterns: usize,
    pub(super) placement: Placement,
}

/// State of a name at the broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Placement {
    #[default]
    Unplaced,
    Subscribed,
    /// The name's messages are delivered through this pattern.
    Covered(Arc<str>),
    /// The pattern is unsubscribed when the names that it covers are placed elsewhere.
    Retiring {
        is_subscribed: bool,
    },
}

/// Returns the memory of a name, in bytes.
pub(super) fn cost(name: &str) -> usize {
    name.len() + NAME_OVERHEAD_BYTES
}

impl Placements {
    pub(super) fn entry(&mut self, name: &Arc<str>) -> &mut NameEntry {
        let Self { names, bytes, .. } = self;
        names.entry(Arc::clone(name)).or_insert_with(|| {
            *bytes += cost(name);
            NameEntry::default()
        })
    }

    pub(super) fn placement(&self, name: &str) -> Option<&Placement> {
        self.names.get(name).map(|entry| &entry.placement)
    }

    /// Removes a name and its state.
    fn remove_name(&mut self, name: &str) {
        if self.names.remove(name).is_some() {
            self.bytes -= cost(name);
        }
    }

    /// Adds a name to the subscriptions.
    fn subscribe(&mut self, name: Arc<str>, changes: &mut Changes) {
        self.entry(&name).placement = Placement::Subscribed;
        self.subscribed += 1;
        if is_pattern(&name) {
            self.patterns.insert(&name);
            self.sweep_later(&name);
        }
        changes.subscribe.push(name);
    }

    /// Removes a name from the subscriptions; the caller records the name's new placement.
    fn unsubscribe(&mut self, name: Arc<str>, changes: &mut Changes) {
        self.subscribed -= 1;
        if is_pattern(&name) {
            self.patterns.remove(&name);
        }
        changes.unsubscribe.push(name);
    }

    /// Records that a pattern covers a name.
    fn attach(&mut self, name: &Arc<str>, cover: &Arc<str>) {
        self.entry(name).placement = Placement::Covered(Arc::clone(cover));
        let covered = self.covered.entry(Arc::clone(cover)).or_default();
        if covered.names.insert(Arc::clone(name)) {
            covered.patterns += usize::from(is_pattern(name));
        }
    }

    /// Removes a name from its cover. Retires the cover if it is no longer needed.
    fn detach(&mut self, name: &str, cover: &Arc<str>) {
        let Some(covered) = self.covered.get_mut(cover) else { return };
        if covered.names.remove(name) {
            covered.patterns -= usize::from(is_pattern(name));
        }
        if covered.names.is_empty() {
            self.covered.remove(cover);
        }
        if self.placement(cover) == Some(&Placement::Subscribed) && !self.is_needed(cover) {
            self.retire(cover, true);
        }
    }

    /// Returns `true` if a subscribed name has a subscriber, lingers, or replaces a crowd that is
    /// not small.
    fn is_needed(&self, name: &str) -> bool {
        let patterns = self.covered.get(name).map_or(0, |covered| covered.patterns);
        self.names.get(name).is_some_and(|entry| {
            entry.is_wanted
                || entry.lingers_until.is_some()
                || (entry.min_patterns > 0 && patterns >= entry.min_patterns)
        })
    }

    /// Starts to retire a pattern that still covers names.
    fn retire(&mut self, name: &Arc<str>, is_subscribed: bool) {
        if is_subscribed {
            self.patterns.remove(name);
        }
        self.entry(name).placement = Placement::Retiring { is_subscribed };
        self.retiring.push_back(Arc::clone(name));
    }

    /// Cancels the retirement of a name.
    fn restore(&mut self, name: &Arc<str>, is_subscribed: bool) {
        self.retiring.retain(|retiring| retiring != name);
        self.entry(name).placement = if is_subscribed { Placement::Subscribed } else { Placement::Unplaced };
        if is_subscribed {
            self.patterns.insert(name);
        }
    }

    /// Attaches a name to a pattern that covers it, or else subscribes to the name.
    fn place(&mut self, name: &Arc<str>, changes: &mut Changes) {
        if let Some(cover) = self.patterns.find_cover(name).cloned() {
            self.attach(name, &cover);
        } else if is_pattern(name) {
            self.place_pattern(name, changes);
        } else {
            self.subscribe(Arc::clone(name), changes);
        }
    }

    /// Subscribes to a pattern. Subscribes to a broader pattern instead if the pattern has too many
    /// levels or is part of a crowd of more than [`MAX_COPIES`].
    fn place_pattern(&mut self, name: &Arc<str>, changes: &mut Changes) {
        let (mut broad, mut min_patterns) = match shorten(name) {
            Some(short) => (Arc::from(short), 1),
            None => (Arc::clone(name), 0),
        };
        let mut members = Vec::new();
        loop {
            let crowd = self.patterns.crowd(&broad, MAX_COPIES);
            if crowd.is_empty() {
                break;
            }
            min_patterns = SMALL_CROWD + 1;
            for member in crowd {
                broad = Arc::from(join(&broad, &member));
                self.patterns.remove(&member);
                members.push(member);
            }
        }
        if members.contains(&broad) {
            // This member covers all others, so it stays subscribed.
            self.patterns.insert(&broad);
        }
        if broad == *name {
            self.subscribe(Arc::clone(name), changes);
        } else {
            info!(
                pattern = %broad, members = members.len() + 1,
                "Subscribed to a broader pattern instead"
            );
            self.subscribe_for_others(&broad, min_patterns, changes);
            self.attach(name, &broad);
        }
        for member in members.into_iter().filter(|member| *member != broad) {
            self.replace_with(member, &broad, changes);
        }
    }

    /// Subscribes to a pattern that replaces others, unless it is subscribed already.
    fn subscribe_for_others(&mut self, name: &Arc<str>, min_patterns: usize, changes: &mut Changes) {
        let entry = self.entry(name);
        entry.min_patterns = entry.min_patterns.max(min_patterns);
        if let Placement::Retiring { is_subscribed } = entry.placement {
            self.restore(name, is_subscribed);
        }
        let pending_removal = changes.unsubscribe.iter().position(|removed| removed == name);
        match self.placement(name) {
            Some(Placement::Subscribed) => {}
            Some(Placement::Covered(cover)) => {
                // This arm is not reached: a cover of this pattern would also cover the names that
                // it replaces.
                let cover = Arc::clone(cover);
                self.detach(name, &cover);
                self.subscribe(Arc::clone(name), changes);
            }
            _ => self.subscribe(Arc::clone(name), changes),
        }
        if let Some(index) = pending_removal {
            // The removal is not sent yet, so it and the new subscription cancel each other.
            changes.unsubscribe.swap_remove(index);
            changes.subscribe.pop();
        }
    }

    /// Unsubscribes from a name and attaches it to a pattern that covers it now.
    fn replace_with(&mut self, name: Arc<str>, cover: &Arc<str>, changes: &mut Changes) {
        self.unsubscribe(Arc::clone(&name), changes);
        if self.is_needed_by_itself(&name) {
            self.attach(&name, cover);
        } else if self.covered.contains_key(&name) {
            self.retire(&name, false);
        } else {
            self.remove_name(&name);
        }
    }

    /// Returns `true` if a name has a subscriber, lingers, or is to be placed.
    fn is_needed_by_itself(&self, name: &str) -> bool {
        self.names
            .get(name)
            .is_some_and(|entry| entry.is_wanted || entry.lingers_until.is_some() || entry.is_unplaced)
    }

    /// Places one name of the next retiring pattern elsewhere, or unsubscribes from the pattern if
    /// it covers none. Returns `false` if there is nothing to do, as all phases of
    /// [`Interests::take`](super::Interests::take) do.
    pub(super) fn retire_next(&mut self, changes: &mut Changes) -> bool {
        let Some(name) = self.retiring.front().cloned() else { return false };
        let Some(Placement::Retiring { is_subscribed }) = self.placement(&name).cloned() else {
            self.retiring.pop_front();
            return true;
        };
        if self.names.get(&name).is_some_and(|entry| entry.is_wanted) {
            self.restore(&name, is_subscribed);
            return true;
        }
        let Some(covered) = self.covered.get_mut(&name) else {
            self.retiring.pop_front();
            if is_subscribed {
                self.unsubscribe(Arc::clone(&name), changes);
            }
            match self.names.get_mut(&name) {
                Some(entry) if entry.lingers_until.is_some() || entry.is_unplaced => {
                    entry.placement = Placement::Unplaced
                }
                _ => self.remove_name(&name),
            }
            return true;
        };
        let Some(next) = covered.names.pop_first() else {
            self.covered.remove(&name);
            return true;
        };
        covered.patterns -= usize::from(is_pattern(&next));
        if self.placement(&next) == Some(&Placement::Covered(name)) {
            self.entry(&next).placement = Placement::Unplaced;
            let is_wanted = self.names.get(&next).is_some_and(|entry| entry.is_wanted);
            if is_wanted || self.covered.contains_key(&next) {
                self.place(&next, changes);
            } else if !self.is_needed_by_itself(&next) {
                self.remove_name(&next);
            }
        }
        true
    }

    /// Places the next unplaced name.
    pub(super) fn place_next(&mut self, changes: &mut Changes) -> bool {
        let Some(name) = self.unplaced.pop_front() else { return false };
        let Some(entry) = self.names.get_mut(&name) else { return true };
        entry.is_unplaced = false;
        let (is_wanted, lingers) = (entry.is_wanted, entry.lingers_until.is_some());
        match entry.placement.clone() {
            Placement::Subscribed | Placement::Covered(_) => {}
            Placement::Retiring { is_subscribed } if is_wanted => {
                self.restore(&name, is_subscribed);
                if !is_subscribed {
                    self.place(&name, changes);
                }
            }
            Placement::Retiring { .. } => {}
            Placement::Unplaced if is_wanted => self.place(&name, changes),
            Placement::Unplaced if lingers => {}
            Placement::Unplaced => self.end_unplaced(&name),
        }
        true
    }

    /// Ends a name that has no subscription at the broker.
    fn end_unplaced(&mut self, name: &Arc<str>) {
        if self.covered.contains_key(name) {
            self.retire(name, false);
        } else {
            self.remove_name(name);
        }
    }

    /// Ends the next lingering name that is due, or the oldest one if lingering names exceed their
    /// limit.
    pub(super) fn end_next(&mut self, changes: &mut Changes) -> bool {
        let now = self.now;
        let is_full = self.lingering_bytes > MAX_LINGERING_BYTES;
        let Some((_, name)) = self.lingering.pop_front_if(|(at, _)| *at <= now || is_full) else {
            return false;
        };
        self.lingering_bytes -= cost(&name);
        let Some(entry) = self.names.get_mut(&name) else { return true };
        let lingers_until = entry.lingers_until.take();
        if entry.is_wanted {
            return true;
        }
        if let Some(lingers_until) = lingers_until.filter(|lingers_until| *lingers_until > now && !is_full) {
            // The name gained and lost a subscriber meanwhile, so it lingers longer.
            entry.lingers_until = Some(lingers_until);
            self.lingering_bytes += cost(&name);
            self.lingering.push_back((lingers_until, name));
            return true;
        }
        match entry.placement.clone() {
            // `retire_next` ends retiring names.
            Placement::Retiring { .. } => {}
            Placement::Unplaced if entry.is_unplaced => {}
            Placement::Unplaced => self.end_unplaced(&name),
            Placement::Covered(cover) => {
                entry.placement = Placement::Unplaced;
                self.detach(&name, &cover);
                self.end_unplaced(&name);
            }
            Placement::Subscribed if self.is_needed(&name) => {}
            Placement::Subscribed if self.covered.contains_key(&name) => self.retire(&name, true),
            Placement::Subscribed => {
                self.unsubscribe(Arc::clone(&name), changes);
                self.remove_name(&name);
            }
        }
        true
    }

    /// Schedules a check of the names that a new pattern may cover.
    fn sweep_later(&mut self, pattern: &str) {
        let prefix = literal_prefix(pattern);
        match &mut self.unswept {
            Some((_, common)) => {
                let equal = common.char_indices().zip(prefix.chars()).take_while(|((_, a), b)| a == b);
                let len = equal.last().map_or(0, |((at, char), _)| at + char.len_utf8());
                common.truncate(len);
            }
            None => self.unswept = Some((self.now + SWEEP_DELAY, prefix.to_owned())),
        }
    }

    /// Checks the next name of the sweep, and attaches the name to a pattern that covers it.
    pub(super) fn sweep_next(&mut self, changes: &mut Changes) -> bool {
        let now = self.now;
        if self.sweep.is_none()
            && let Some((_, prefix)) = self.unswept.take_if(|(at, _)| *at <= now)
        {
            self.sweep = Some(Sweep { prefix, after: None });
        }
        let Some(sweep) = &mut self.sweep else { return false };
        let start = match &sweep.after {
            Some(name) => Bound::Excluded(&**name),
            None => Bound::Included(sweep.prefix.as_str()),
        };
        let next = self.names.range::<str, _>((start, Bound::Unbounded)).next();
        let Some((name, entry)) = next.filter(|(name, _)| name.starts_with(&sweep.prefix)) else {
            self.sweep = None;
            return true;
        };
        let name = Arc::clone(name);
        sweep.after = Some(Arc::clone(&name));
        if entry.placement == Placement::Subscribed
            && let Some(cover) = self.patterns.find_cover(&name).cloned()
        {
            self.replace_with(name, &cover, changes);
        }
        true
    }

    /// Clears all placements and queues the names with subscribers to be placed again.
    pub(super) fn reset(&mut self) {
        self.patterns.clear();
        self.covered.clear();
        self.unplaced.clear();
        self.lingering.clear();
        self.lingering_bytes = 0;
        self.retiring.clear();
        (self.unswept, self.sweep, self.subscribed) = (None, None, 0);
        self.names.retain(|_, entry| entry.is_wanted);
        self.bytes = self.names.keys().map(|name| cost(name)).sum();
        for (name, entry) in &mut self.names {
            *entry = NameEntry { is_wanted: true, is_unplaced: true, ..NameEntry::default() };
            // Patterns are placed first, so that names that they cover are not subscribed to.
            if is_pattern(name) {
                self.unplaced.push_front(Arc::clone(name));
            } else {
                self.unplaced.push_back(Arc::clone(name));
            }
        }
    }
}
