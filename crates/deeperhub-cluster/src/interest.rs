//! Which topics and patterns this node wants to get from the broker.
//!
//! The broker delivers a message once for each of the node's subscriptions that match it. So a name
//! is not subscribed to if a followed pattern covers it. At most [`MAX_COPIES`] followed patterns
//! may match a common topic; beyond that, one broader pattern that covers them all is followed
//! instead. Names that lose their cover are followed before the cover is left, so that no message
//! is missed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::RandomState;
use tokio::sync::Notify;
use tracing::info;

use crate::cover::{Patterns, Wildcards, is_pattern, join, literal_prefix, shorten};

/// How long the broker's subscription stays after the last subscriber of the node has left: those who come and go, or
/// change their connection, cost the broker nothing.
const LINGER: Duration = Duration::from_secs(2);

/// Limit of the lingering names' cost in bytes. Over it, the names that linger longest end at once.
const MAX_LINGERING_BYTES: usize = 8 << 20;

/// Cost of a name besides its bytes.
const OVERHEAD: usize = 128;

/// Names that one change takes to the broker.
const BATCH: usize = 1024;

/// Most names and pattern-tree nodes visited for one change.
const MAX_STEPS: usize = 32_768;

/// Most copies of a message that patterns may bring when none covers another.
pub(crate) const MAX_COPIES: usize = 4;

/// Number of covered patterns at or below which a crowd's broader pattern ends.
const SMALL_CROWD: usize = MAX_COPIES / 2;

/// Delay before the names that a new pattern covers are left. A pattern that comes and goes within
/// it leaves them untouched.
const SETTLE: Duration = Duration::from_secs(1);

/// What this node's subscribers want, and what the broker has been told.
#[derive(Debug)]
pub(crate) struct Interests {
    inner: Mutex<Inner>,
    /// Told when there is something to tell the broker.
    pub(crate) changed: Notify,
    /// Memory that the client library keeps per followed name.
    each_followed: usize,
}

#[derive(Debug)]
struct Inner {
    names: BTreeMap<Arc<str>, Entry>,
    /// Followed patterns, without those about to be left.
    patterns: Patterns,
    /// Names that each pattern covers and that would be followed without it.
    covered: HashMap<Arc<str>, Covered, RandomState>,
    /// Names to follow or to find a cover for.
    waiting: VecDeque<Arc<str>>,
    /// End times of names without a subscriber, roughly in order. Some may have a subscriber again.
    lingering: VecDeque<(Instant, Arc<str>)>,
    lingering_bytes: usize,
    /// Patterns to leave, in this order, once the names that they cover are placed elsewhere.
    retiring: VecDeque<Arc<str>>,
    /// Prefix of the names that a new pattern may cover, and the time from which they are checked.
    unswept: Option<(Instant, String)>,
    sweep: Option<Sweep>,
    /// Number of names subscribed to at the broker.
    followed: usize,
    bytes: usize,
    /// Time of the change that is being built.
    now: Instant,
}

/// Scan of all names with a prefix for those that a pattern covers now.
#[derive(Debug)]
struct Sweep {
    prefix: String,
    /// Last name visited.
    after: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Covered {
    names: BTreeSet<Arc<str>>,
    /// Number of patterns among them.
    patterns: usize,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    is_wanted: bool,
    /// It stands in `waiting`.
    is_waiting: bool,
    /// End time of a name without a subscriber. While set, the name is in `lingering`.
    ends: Option<Instant>,
    /// For a pattern followed on behalf of others: it ends when it covers fewer patterns than this.
    /// Zero: followed only for itself.
    least: usize,
    told: Told,
}

/// State of a name at the broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Followed,
    /// Delivered through this pattern.
    Covered(Arc<str>),
    /// To be left once the names that it covers are placed elsewhere.
    Retiring {
        is_followed: bool,
    },
}

/// Subscriptions to add at the broker and, once it has confirmed them, subscriptions to remove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) follow: Vec<Arc<str>>,
    pub(crate) leave: Vec<Arc<str>>,
    /// More changes can be taken at once.
    pub(crate) is_more: bool,
}

impl Interests {
    pub(crate) fn new(wildcards: Wildcards, each_followed: usize) -> Self {
        let inner = Inner {
            names: BTreeMap::new(),
            patterns: Patterns::new(wildcards),
            covered: HashMap::default(),
            waiting: VecDeque::new(),
            lingering: VecDeque::new(),
            lingering_bytes: 0,
            retiring: VecDeque::new(),
            unswept: None,
            sweep: None,
            followed: 0,
            bytes: 0,
            now: Instant::now(),
        };
        Self { inner: Mutex::new(inner), changed: Notify::new(), each_followed }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's first subscriber of a topic or pattern has come.
    pub(crate) fn gained(&self, name: &Arc<str>) {
        let mut inner = self.lock();
        let entry = inner.entry(name);
        entry.is_wanted = true;
        let is_told = matches!(entry.told, Told::Followed | Told::Covered(_));
        if !is_told && !entry.is_waiting {
            entry.is_waiting = true;
            inner.waiting.push_back(Arc::clone(name));
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Its last one has left.
    pub(crate) fn lost(&self, name: &Arc<str>, now: Instant) {
        let mut inner = self.lock();
        let Some(entry) = inner.names.get_mut(name) else { return };
        entry.is_wanted = false;
        let is_new = entry.ends.replace(now + LINGER).is_none();
        if is_new {
            inner.lingering.push_back((now + LINGER, Arc::clone(name)));
            inner.lingering_bytes += cost(name);
        }
        let is_due = inner.lingering.len() == 1 || inner.lingering_bytes > MAX_LINGERING_BYTES;
        drop(inner);
        if is_due {
            self.changed.notify_one();
        }
    }

    /// When there will be something to tell the broker, as far as that is known; `None`: perhaps never.
    pub(crate) fn due(&self) -> Option<Instant> {
        let inner = self.lock();
        let lingering = inner.lingering.front().map(|(at, _)| *at);
        let unswept = inner.unswept.as_ref().map(|(at, _)| *at);
        lingering.into_iter().chain(unswept).min()
    }

    /// What is to be told now, up to a batch, as if the broker had heard it.
    pub(crate) fn take(&self, now: Instant) -> Changes {
        let mut inner = self.lock();
        inner.now = now;
        let mut changes = Changes::default();
        let mut steps = 0;
        // The order matters, and each phase runs once. A name left in one change must not be
        // followed in the same change, since all additions are sent first.
        let phases: [fn(&mut Inner, &mut Changes) -> bool; 4] =
            [Inner::retire_next, Inner::place_next, Inner::end_next, Inner::sweep_next];
        for next in phases {
            while next(&mut inner, &mut changes) {
                steps += 1 + inner.patterns.take_steps();
                if steps >= MAX_STEPS || changes.follow.len() >= BATCH || changes.leave.len() >= BATCH {
                    changes.is_more = true;
                    return changes;
                }
            }
        }
        // Names that ended may have left a pattern to retire.
        changes.is_more = !inner.retiring.is_empty();
        changes
    }

    /// The broker knows nothing any more: all that is wanted waits to be told again.
    pub(crate) fn start_over(&self) {
        let mut inner = self.lock();
        inner.start_over();
        drop(inner);
        self.changed.notify_one();
    }

    /// Returns the number of names subscribed to at the broker.
    pub(crate) fn len(&self) -> usize {
        self.lock().followed
    }

    /// Returns the approximate memory of all names and of the client library's subscriptions.
    pub(crate) fn bytes(&self) -> usize {
        let inner = self.lock();
        inner.bytes + inner.followed * self.each_followed
    }
}

fn cost(name: &str) -> usize {
    name.len() + OVERHEAD
}

impl Inner {
    fn entry(&mut self, name: &Arc<str>) -> &mut Entry {
        let Self { names, bytes, .. } = self;
        names.entry(Arc::clone(name)).or_insert_with(|| {
            *bytes += cost(name);
            Entry::default()
        })
    }

    fn told(&self, name: &str) -> Option<&Told> {
        self.names.get(name).map(|entry| &entry.told)
    }

    fn forget(&mut self, name: &str) {
        if self.names.remove(name).is_some() {
            self.bytes -= cost(name);
        }
    }

    /// Follows a name: adds it to the change's additions.
    fn follow(&mut self, name: Arc<str>, changes: &mut Changes) {
        self.entry(&name).told = Told::Followed;
        self.followed += 1;
        if is_pattern(&name) {
            self.patterns.insert(&name);
            self.sweep_later(&name);
        }
        changes.follow.push(name);
    }

    /// Adds a followed name to the change's removals; the caller records the name's new state.
    fn leave(&mut self, name: Arc<str>, changes: &mut Changes) {
        self.followed -= 1;
        if is_pattern(&name) {
            self.patterns.remove(&name);
        }
        changes.leave.push(name);
    }

    fn attach(&mut self, name: &Arc<str>, cover: &Arc<str>) {
        self.entry(name).told = Told::Covered(Arc::clone(cover));
        let covered = self.covered.entry(Arc::clone(cover)).or_default();
        if covered.names.insert(Arc::clone(name)) {
            covered.patterns += usize::from(is_pattern(name));
        }
    }

    /// Removes a name from its cover. Retires a cover that is no longer needed.
    fn detach(&mut self, name: &str, cover: &Arc<str>) {
        let Some(covered) = self.covered.get_mut(cover) else { return };
        if covered.names.remove(name) {
            covered.patterns -= usize::from(is_pattern(name));
        }
        if covered.names.is_empty() {
            self.covered.remove(cover);
        }
        if self.told(cover) == Some(&Told::Followed) && !self.is_needed(cover) {
            self.retire(cover, true);
        }
    }

    /// Returns `true` if a followed name is wanted, lingers, or replaces a crowd.
    fn is_needed(&self, name: &str) -> bool {
        let patterns = self.covered.get(name).map_or(0, |covered| covered.patterns);
        self.names.get(name).is_some_and(|entry| {
            entry.is_wanted || entry.ends.is_some() || (entry.least > 0 && patterns >= entry.least)
        })
    }

    fn retire(&mut self, name: &Arc<str>, is_followed: bool) {
        if is_followed {
            self.patterns.remove(name);
        }
        self.entry(name).told = Told::Retiring { is_followed };
        self.retiring.push_back(Arc::clone(name));
    }

    /// Cancels the retirement of a name.
    fn restore(&mut self, name: &Arc<str>, is_followed: bool) {
        self.retiring.retain(|retiring| retiring != name);
        self.entry(name).told = if is_followed { Told::Followed } else { Told::Nothing };
        if is_followed {
            self.patterns.insert(name);
        }
    }

    /// Attaches a name to a pattern that covers it, or follows the name.
    fn place(&mut self, name: &Arc<str>, changes: &mut Changes) {
        if let Some(cover) = self.patterns.find_cover(name).cloned() {
            self.attach(name, &cover);
        } else if is_pattern(name) {
            self.place_pattern(name, changes);
        } else {
            self.follow(Arc::clone(name), changes);
        }
    }

    /// Follows a pattern, or a broader one if it is too deep or too many match the same topics.
    fn place_pattern(&mut self, name: &Arc<str>, changes: &mut Changes) {
        let (mut broad, mut least) = match shorten(name) {
            Some(short) => (Arc::from(short), 1),
            None => (Arc::clone(name), 0),
        };
        let mut members = Vec::new();
        loop {
            let crowd = self.patterns.crowd(&broad, MAX_COPIES);
            if crowd.is_empty() {
                break;
            }
            least = SMALL_CROWD + 1;
            for member in crowd {
                broad = Arc::from(join(&broad, &member));
                self.patterns.remove(&member);
                members.push(member);
            }
        }
        if members.contains(&broad) {
            // One member covers all others.
            self.patterns.insert(&broad);
        }
        if broad == *name {
            self.follow(Arc::clone(name), changes);
        } else {
            info!(
                pattern = %broad, members = members.len() + 1,
                "Subscribed to a broader pattern instead"
            );
            self.raise(&broad, least, changes);
            self.attach(name, &broad);
        }
        for member in members.into_iter().filter(|member| *member != broad) {
            self.leave_to(member, &broad, changes);
        }
    }

    /// Follows a pattern on behalf of others.
    fn raise(&mut self, name: &Arc<str>, least: usize, changes: &mut Changes) {
        let entry = self.entry(name);
        entry.least = entry.least.max(least);
        if let Told::Retiring { is_followed } = entry.told {
            self.restore(name, is_followed);
        }
        let followed = changes.leave.iter().position(|left| left == name);
        match self.told(name) {
            Some(Told::Followed) => {}
            Some(Told::Covered(cover)) => {
                // Not reached: a cover of this pattern would have covered the names that it is for.
                let cover = Arc::clone(cover);
                self.detach(name, &cover);
                self.follow(Arc::clone(name), changes);
            }
            _ => self.follow(Arc::clone(name), changes),
        }
        if let Some(index) = followed {
            // The broker has not been told of the removal yet.
            changes.leave.swap_remove(index);
            changes.follow.pop();
        }
    }

    /// Leaves a followed name that a pattern covers now.
    fn leave_to(&mut self, name: Arc<str>, cover: &Arc<str>, changes: &mut Changes) {
        self.leave(Arc::clone(&name), changes);
        if self.is_needed_by_itself(&name) {
            self.attach(&name, cover);
        } else if self.covered.contains_key(&name) {
            self.retire(&name, false);
        } else {
            self.forget(&name);
        }
    }

    fn is_needed_by_itself(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|entry| entry.is_wanted || entry.ends.is_some() || entry.is_waiting)
    }

    /// Places one name of the next retiring pattern elsewhere, or leaves the pattern. Returns
    /// `false` if there is nothing to do, as do the phases below.
    fn retire_next(&mut self, changes: &mut Changes) -> bool {
        let Some(name) = self.retiring.front().cloned() else { return false };
        let Some(Told::Retiring { is_followed }) = self.told(&name).cloned() else {
            self.retiring.pop_front();
            return true;
        };
        if self.names.get(&name).is_some_and(|entry| entry.is_wanted) {
            self.restore(&name, is_followed);
            return true;
        }
        let Some(covered) = self.covered.get_mut(&name) else {
            self.retiring.pop_front();
            if is_followed {
                self.leave(Arc::clone(&name), changes);
            }
            match self.names.get_mut(&name) {
                Some(entry) if entry.ends.is_some() || entry.is_waiting => entry.told = Told::Nothing,
                _ => self.forget(&name),
            }
            return true;
        };
        let Some(next) = covered.names.pop_first() else {
            self.covered.remove(&name);
            return true;
        };
        covered.patterns -= usize::from(is_pattern(&next));
        if self.told(&next) == Some(&Told::Covered(name)) {
            self.entry(&next).told = Told::Nothing;
            let is_wanted = self.names.get(&next).is_some_and(|entry| entry.is_wanted);
            if is_wanted || self.covered.contains_key(&next) {
                self.place(&next, changes);
            } else if !self.is_needed_by_itself(&next) {
                self.forget(&next);
            }
        }
        true
    }

    /// Places the next waiting name.
    fn place_next(&mut self, changes: &mut Changes) -> bool {
        let Some(name) = self.waiting.pop_front() else { return false };
        let Some(entry) = self.names.get_mut(&name) else { return true };
        entry.is_waiting = false;
        let (is_wanted, lingers) = (entry.is_wanted, entry.ends.is_some());
        match entry.told.clone() {
            Told::Followed | Told::Covered(_) => {}
            Told::Retiring { is_followed } if is_wanted => {
                self.restore(&name, is_followed);
                if !is_followed {
                    self.place(&name, changes);
                }
            }
            Told::Retiring { .. } => {}
            Told::Nothing if is_wanted => self.place(&name, changes),
            Told::Nothing if lingers => {}
            Told::Nothing => self.end_untold(&name),
        }
        true
    }

    /// Ends a name that has no subscription at the broker.
    fn end_untold(&mut self, name: &Arc<str>) {
        if self.covered.contains_key(name) {
            self.retire(name, false);
        } else {
            self.forget(name);
        }
    }

    /// Ends the next lingering name that is due, or the oldest one if they exceed their limit.
    fn end_next(&mut self, changes: &mut Changes) -> bool {
        let now = self.now;
        let is_full = self.lingering_bytes > MAX_LINGERING_BYTES;
        let Some((_, name)) = self.lingering.pop_front_if(|(at, _)| *at <= now || is_full) else {
            return false;
        };
        self.lingering_bytes -= cost(&name);
        let Some(entry) = self.names.get_mut(&name) else { return true };
        let ends = entry.ends.take();
        if entry.is_wanted {
            return true;
        }
        if let Some(ends) = ends.filter(|ends| *ends > now && !is_full) {
            // It gained and lost a subscriber again meanwhile.
            entry.ends = Some(ends);
            self.lingering_bytes += cost(&name);
            self.lingering.push_back((ends, name));
            return true;
        }
        match entry.told.clone() {
            // `retire_next` handles it.
            Told::Retiring { .. } => {}
            Told::Nothing if entry.is_waiting => {}
            Told::Nothing => self.end_untold(&name),
            Told::Covered(cover) => {
                entry.told = Told::Nothing;
                self.detach(&name, &cover);
                self.end_untold(&name);
            }
            Told::Followed if self.is_needed(&name) => {}
            Told::Followed if self.covered.contains_key(&name) => self.retire(&name, true),
            Told::Followed => {
                self.leave(Arc::clone(&name), changes);
                self.forget(&name);
            }
        }
        true
    }

    /// Schedules a check of the names that a new pattern may cover.
    fn sweep_later(&mut self, pattern: &str) {
        let prefix = literal_prefix(pattern);
        match &mut self.unswept {
            Some((_, common)) => {
                let same = common.char_indices().zip(prefix.chars()).take_while(|((_, a), b)| a == b);
                let len = same.last().map_or(0, |((at, char), _)| at + char.len_utf8());
                common.truncate(len);
            }
            None => self.unswept = Some((self.now + SETTLE, prefix.to_owned())),
        }
    }

    /// Checks whether a newer pattern covers the next name.
    fn sweep_next(&mut self, changes: &mut Changes) -> bool {
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
        if entry.told == Told::Followed
            && let Some(cover) = self.patterns.find_cover(&name).cloned()
        {
            self.leave_to(name, &cover, changes);
        }
        true
    }

    fn start_over(&mut self) {
        self.patterns.clear();
        self.covered.clear();
        self.waiting.clear();
        self.lingering.clear();
        self.lingering_bytes = 0;
        self.retiring.clear();
        (self.unswept, self.sweep, self.followed) = (None, None, 0);
        self.names.retain(|_, entry| entry.is_wanted);
        self.bytes = self.names.keys().map(|name| cost(name)).sum();
        for (name, entry) in &mut self.names {
            *entry = Entry { is_wanted: true, is_waiting: true, ..Entry::default() };
            // Patterns first, so that the names they cover are never sent.
            if is_pattern(name) {
                self.waiting.push_front(Arc::clone(name));
            } else {
                self.waiting.push_back(Arc::clone(name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deeperhub_protocol::{Topic, TopicPattern};
    use proptest::prelude::*;

    /// Fake broker that applies each change, with a clock.
    struct Told {
        interests: Interests,
        names: BTreeSet<String>,
        wildcards: Wildcards,
        now: Instant,
        changes: usize,
    }

    impl Told {
        fn new(wildcards: Wildcards) -> Self {
            let (interests, names) = (Interests::new(wildcards, 1000), BTreeSet::new());
            Self { interests, names, wildcards, now: Instant::now(), changes: 0 }
        }

        fn gain(&self, names: &[&str]) {
            names.iter().for_each(|name| self.interests.gained(&Arc::from(*name)));
        }

        fn lose(&self, names: &[&str]) {
            names.iter().for_each(|name| self.interests.lost(&Arc::from(*name), self.now));
        }

        fn wanted(&self) -> Vec<Arc<str>> {
            let inner = self.interests.lock();
            inner
                .names
                .iter()
                .filter(|(_, entry)| entry.is_wanted)
                .map(|(name, _)| Arc::clone(name))
                .collect()
        }

        fn brings(&self, name: &str) -> bool {
            let mut patterns = Patterns::new(self.wildcards);
            for told in self.names.iter().filter(|told| is_pattern(told)) {
                patterns.insert(&Arc::from(told.as_str()));
            }
            self.names.contains(name) || patterns.find_cover(name).is_some()
        }

        /// Applies all changes that are due now.
        fn tell(&mut self) {
            loop {
                let changes = self.interests.take(self.now);
                self.changes += changes.follow.len() + changes.leave.len();
                let brought: Vec<_> = self.wanted().into_iter().filter(|name| self.brings(name)).collect();
                for name in changes.follow {
                    assert!(self.names.insert(name.to_string()), "{name} is followed twice");
                }
                for name in changes.leave {
                    assert!(self.names.remove(&*name), "{name} is left twice");
                }
                for name in brought {
                    assert!(self.brings(&name), "{name} is missed: {:?}", self.names);
                }
                if !changes.is_more {
                    break;
                }
            }
            for name in self.wanted() {
                assert!(self.brings(&name), "{name} is not brought: {:?}", self.names);
            }
            assert_eq!(self.interests.len(), self.names.len());
        }

        /// Advances the clock until there is nothing left to do.
        fn settle(&mut self) {
            for _ in 0..4 {
                self.now += LINGER.max(SETTLE);
                self.tell();
            }
            for name in self.names.iter().filter(|name| is_pattern(name)) {
                let others: Vec<_> = self.names.iter().filter(|other| *other != name).collect();
                let mut patterns = Patterns::new(self.wildcards);
                others.iter().filter(|other| is_pattern(other)).for_each(|other| {
                    patterns.insert(&Arc::from(other.as_str()));
                });
                assert_eq!(patterns.find_cover(name), None, "{name} is covered: {:?}", self.names);
            }
        }

        fn told(&self) -> Vec<&str> {
            self.names.iter().map(String::as_str).collect()
        }
    }

    #[test]
    fn the_first_is_followed_and_the_last_left_after_a_while() {
        let mut told = Told::new(Wildcards::Levels);
        told.gain(&["a"]);
        told.tell();
        assert_eq!(told.told(), ["a"]);
        told.lose(&["a"]);
        assert_eq!(told.interests.due(), Some(told.now + LINGER));
        told.tell();
        assert_eq!(told.told(), ["a"]);
        told.now += LINGER;
        told.tell();
        assert!(told.names.is_empty());
        assert_eq!((told.interests.bytes(), told.interests.due()), (0, None));
    }

    #[test]
    fn who_comes_back_in_time_changes_nothing_and_lingers_anew() {
        let mut told = Told::new(Wildcards::Levels);
        told.gain(&["a"]);
        told.tell();
        told.lose(&["a"]);
        told.now += LINGER / 2;
        told.gain(&["a"]);
        told.lose(&["a"]);
        told.now += LINGER * 3 / 4;
        told.tell();
        assert_eq!((told.told(), told.changes), (vec!["a"], 1));
        told.now += LINGER / 4;
        told.tell();
        assert!(told.names.is_empty());
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_followed() {
        let mut told = Told::new(Wildcards::Levels);
        told.gain(&["a"]);
        told.lose(&["a"]);
        // The name ends while it is still waiting.
        told.now += LINGER;
        told.tell();
        told.settle();
        assert_eq!((told.changes, told.interests.bytes()), (0, 0));
        // The same with more names than one change holds: half of them still wait when all are
        // lost.
        let names: Vec<_> = (0..BATCH * 2).map(|name| format!("a{name}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        told.gain(&names);
        let first = told.interests.take(told.now);
        assert_eq!((first.follow.len(), first.is_more), (BATCH, true));
        told.names.extend(first.follow.iter().map(ToString::to_string));
        told.lose(&names);
        told.settle();
        assert_eq!((told.names.len(), told.interests.bytes()), (0, 0));
    }

    #[test]
    fn what_lingers_is_bounded() {
        let mut told = Told::new(Wildcards::Levels);
        let fits = MAX_LINGERING_BYTES / cost("a000000");
        for number in 0..fits + 5000 {
            let name = format!("a{number:06}");
            told.gain(&[&name]);
            told.lose(&[&name]);
        }
        loop {
            let changes = told.interests.take(told.now);
            if !changes.is_more {
                break;
            }
        }
        let inner = told.interests.lock();
        assert!(inner.lingering_bytes <= MAX_LINGERING_BYTES && inner.lingering.len() <= fits);
        assert!(inner.names.len() <= fits, "{} names of {fits} that fit", inner.names.len());
        assert!(inner.lingering_bytes > MAX_LINGERING_BYTES / 2);
        drop(inner);
        told.settle();
        assert_eq!(told.interests.bytes(), 0);
    }

    #[test]
    fn only_the_broadest_is_followed() {
        for wildcards in [Wildcards::Levels, Wildcards::Globs] {
            let mut told = Told::new(wildcards);
            told.gain(&["a.b.c", "a.b.*", "a.>", "x"]);
            told.tell();
            told.settle();
            assert_eq!(told.told(), ["a.>", "x"]);
            // Names gained later are not followed at all.
            let changes = told.changes;
            told.gain(&["a.b.d", "a.*.d"]);
            told.tell();
            assert_eq!(told.changes, changes);
            // When the broad pattern goes, the names that it covered are followed before it is
            // left.
            told.lose(&["a.>"]);
            told.settle();
            assert_eq!(told.told(), ["a.*.d", "a.b.*", "x"]);
            told.lose(&["a.b.c", "a.b.*", "a.b.d", "a.*.d", "x"]);
            told.settle();
            assert_eq!((told.names.len(), told.interests.bytes()), (0, 0));
        }
    }

    #[test]
    fn a_broad_pattern_that_comes_and_goes_leaves_the_others_as_they_are() {
        let mut told = Told::new(Wildcards::Levels);
        told.gain(&["a", "b"]);
        told.tell();
        told.gain(&[">"]);
        told.tell();
        told.lose(&[">"]);
        told.gain(&[">"]);
        told.tell();
        assert_eq!((told.told(), told.changes), (vec![">", "a", "b"], 3));
    }

    #[test]
    fn many_patterns_that_match_one_topic_become_one() {
        let mut told = Told::new(Wildcards::Levels);
        // All patterns of six levels with three named ones: all twenty match `a.x.x.x.x.x.x`, and
        // none covers another.
        let patterns: Vec<String> = (0_u32..64)
            .filter(|bits| bits.count_ones() == 3)
            .map(|bits| {
                let level = |level: u32| if bits & (1 << level) == 0 { "*" } else { "x" };
                format!("a.{}", (0..6).map(level).collect::<Vec<_>>().join("."))
            })
            .collect();
        let names: Vec<_> = patterns.iter().map(String::as_str).collect();
        told.gain(&names);
        told.tell();
        told.settle();
        assert!(told.names.len() <= MAX_COPIES, "{:?}", told.names);
        // When few are left, they are followed individually again.
        told.lose(&names[2..]);
        told.settle();
        let mut left = names[..2].to_vec();
        left.sort_unstable();
        assert_eq!(told.told(), left);
        told.lose(&names[..2]);
        told.settle();
        assert_eq!((told.names.len(), told.interests.bytes()), (0, 0));
    }

    #[test]
    fn a_pattern_of_very_many_levels_is_followed_as_a_shorter_one() {
        let mut told = Told::new(Wildcards::Levels);
        let deep = vec!["*"; 100].join(".");
        told.gain(&[&deep]);
        told.settle();
        assert_eq!(told.names.len(), 1);
        assert!(!told.names.contains(&deep));
        told.lose(&[&deep]);
        told.settle();
        assert_eq!((told.names.len(), told.interests.bytes()), (0, 0));
    }

    #[test]
    fn a_new_connection_is_told_what_is_wanted() {
        let mut told = Told::new(Wildcards::Levels);
        told.gain(&["a", "b.c", "b.*", "d"]);
        told.settle();
        told.lose(&["a"]);
        told.interests.start_over();
        told.names.clear();
        told.tell();
        // Covered names are not subscribed to.
        assert_eq!(told.told(), ["b.*", "d"]);
        told.gain(&["a"]);
        told.settle();
        assert_eq!(told.told(), ["a", "b.*", "d"]);
    }

    fn some_name() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => Just("a"), 2 => Just("b"), 3 => Just("*")];
        (proptest::collection::vec(level, 1..5), proptest::bool::weighted(0.2)).prop_map(
            |(mut levels, tail)| {
                if tail && let Some(last) = levels.last_mut() {
                    *last = ">";
                }
                levels.join(".")
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_is_missed_nothing_comes_often_and_all_ends(
            steps in proptest::collection::vec((some_name(), any::<bool>(), 0_u64..1500), 1..120), globs: bool,
        ) {
            let wildcards = if globs { Wildcards::Globs } else { Wildcards::Levels };
            let mut told = Told::new(wildcards);
            for (name, is_gained, millis) in &steps {
                if *is_gained {
                    told.gain(&[name]);
                } else {
                    told.lose(&[name]);
                }
                told.now += Duration::from_millis(*millis);
                if millis % 3 > 0 {
                    told.tell();
                }
            }
            told.settle();
            for bits in 0_u32..16 {
                let level = |level: u32| if bits & (1 << level) == 0 { "a" } else { "b" };
                for levels in 1..5 {
                    let topic = (0..levels).map(level).collect::<Vec<_>>().join(".");
                    let parsed = Topic::parse(topic.as_str()).unwrap();
                    let copies = told.names.iter().filter(|name| match TopicPattern::parse(name.as_str()) {
                        Ok(pattern) => pattern.matches(&parsed),
                        Err(_) => **name == topic,
                    });
                    prop_assert!(copies.count() <= MAX_COPIES, "{topic}: {:?}", told.names);
                }
            }
            let all: Vec<_> = told.wanted().iter().map(ToString::to_string).collect();
            told.lose(&all.iter().map(String::as_str).collect::<Vec<_>>());
            told.settle();
            prop_assert_eq!((told.names.len(), told.interests.bytes()), (0, 0));
        }
    }
}
