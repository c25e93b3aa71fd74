//! Which topics and patterns this node wants to get from the broker.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::RandomState;
use tokio::sync::Notify;

/// How long the broker's subscription stays after the last subscriber of the node has left: those who come and go, or
/// change their connection, cost the broker nothing.
const LINGER: Duration = Duration::from_secs(2);

/// Subscriptions that linger at one time; more end at once.
const MAX_LINGERING: usize = 65_536;

/// Names that one change takes to the broker.
const BATCH: usize = 1024;

/// What this node's subscribers want, and what the broker has been told.
#[derive(Debug, Default)]
pub(crate) struct Interests {
    inner: Mutex<Inner>,
    /// Told when there is something to tell the broker.
    pub(crate) changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Arc<str>, Entry, RandomState>,
    /// Names that the broker is to be told of.
    waiting: VecDeque<Arc<str>>,
    /// When names without a subscriber end, in that order; some may have one again.
    lingering: VecDeque<(Instant, Arc<str>)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    is_wanted: bool,
    /// The broker was told.
    is_followed: bool,
    /// It stands in `waiting`.
    is_waiting: bool,
    /// It stands in `lingering`.
    is_lingering: bool,
}

/// What to tell the broker.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) follow: Vec<Arc<str>>,
    pub(crate) leave: Vec<Arc<str>>,
}

impl Interests {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's first subscriber of a topic or pattern has come.
    pub(crate) fn gained(&self, name: &Arc<str>) {
        let mut inner = self.lock();
        let entry = inner.entries.entry(Arc::clone(name)).or_default();
        entry.is_wanted = true;
        if !entry.is_followed && !entry.is_waiting {
            entry.is_waiting = true;
            inner.waiting.push_back(Arc::clone(name));
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Its last one has left.
    pub(crate) fn lost(&self, name: &Arc<str>, now: Instant) {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(name) else { return };
        entry.is_wanted = false;
        if !entry.is_lingering {
            entry.is_lingering = true;
            let linger = if inner.lingering.len() < MAX_LINGERING { LINGER } else { Duration::ZERO };
            inner.lingering.push_back((now + linger, Arc::clone(name)));
            let is_only_one = inner.lingering.len() == 1;
            drop(inner);
            if is_only_one {
                self.changed.notify_one();
            }
        }
    }

    /// When there will be something to tell the broker, as far as that is known; `None`: perhaps never.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.lock().lingering.front().map(|(at, _)| *at)
    }

    /// What is to be told now, up to a batch, as if the broker had heard it.
    pub(crate) fn take(&self, now: Instant) -> Changes {
        let mut inner = self.lock();
        let Inner { entries, waiting, lingering } = &mut *inner;
        let mut changes = Changes::default();
        while changes.follow.len() < BATCH
            && let Some(name) = waiting.pop_front()
        {
            if let Some(entry) = entries.get_mut(&name) {
                entry.is_waiting = false;
                // Nobody may want it any more; then it has not ended to linger, and is asked for after all.
                if !entry.is_followed {
                    entry.is_followed = true;
                    changes.follow.push(name);
                }
            }
        }
        while changes.leave.len() < BATCH
            && lingering.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, name)) = lingering.pop_front()
        {
            let Some(entry) = entries.get_mut(&name) else { continue };
            entry.is_lingering = false;
            if entry.is_wanted || entry.is_waiting {
                continue;
            }
            if entry.is_followed {
                changes.leave.push(Arc::clone(&name));
            }
            entries.remove(&name);
        }
        if entries.capacity() > 1024 && entries.len() < entries.capacity() / 8 {
            let room = entries.len() * 2;
            entries.shrink_to(room);
        }
        changes
    }

    /// The broker knows nothing any more: all that is wanted waits to be told again.
    pub(crate) fn start_over(&self) {
        let mut inner = self.lock();
        let Inner { entries, waiting, lingering } = &mut *inner;
        waiting.clear();
        lingering.clear();
        entries.retain(|_, entry| entry.is_wanted);
        for (name, entry) in entries.iter_mut() {
            *entry = Entry { is_wanted: true, is_waiting: true, ..Entry::default() };
            waiting.push_back(Arc::clone(name));
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Number of names, those that linger among them.
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn the_first_is_followed_and_the_last_left_after_a_while() {
        let interests = Interests::default();
        let now = Instant::now();
        let name = Arc::from("a");
        interests.gained(&name);
        assert_eq!(interests.take(now), Changes { follow: names(&["a"]), leave: vec![] });
        interests.lost(&name, now);
        assert_eq!(interests.due(), Some(now + LINGER));
        assert_eq!(interests.take(now), Changes::default());
        assert_eq!(interests.take(now + LINGER), Changes { follow: vec![], leave: names(&["a"]) });
        assert_eq!((interests.len(), interests.due()), (0, None));
    }

    #[test]
    fn who_comes_back_in_time_changes_nothing() {
        let interests = Interests::default();
        let now = Instant::now();
        let name = Arc::from("a");
        interests.gained(&name);
        interests.take(now);
        for _ in 0..3 {
            interests.lost(&name, now);
            interests.gained(&name);
        }
        assert_eq!(interests.take(now + LINGER), Changes::default());
        interests.lost(&name, now + LINGER);
        assert_eq!(interests.take(now + LINGER * 2).leave, names(&["a"]));
    }

    #[test]
    fn one_that_left_before_it_was_told_is_told_and_left() {
        let interests = Interests::default();
        let now = Instant::now();
        let name = Arc::from("a");
        interests.gained(&name);
        interests.lost(&name, now);
        assert_eq!(interests.take(now).follow, names(&["a"]));
        assert_eq!(interests.take(now + LINGER).leave, names(&["a"]));
    }

    #[test]
    fn a_new_connection_is_told_what_is_wanted() {
        let interests = Interests::default();
        let now = Instant::now();
        for name in names(&["a", "b", "c"]) {
            interests.gained(&name);
        }
        interests.take(now);
        interests.lost(&Arc::from("b"), now);
        interests.start_over();
        let mut follow = interests.take(now).follow;
        follow.sort_unstable();
        assert_eq!(follow, names(&["a", "c"]));
        interests.gained(&Arc::from("b"));
        assert_eq!(interests.take(now + LINGER), Changes { follow: names(&["b"]), leave: vec![] });
    }

    #[test]
    fn many_are_told_in_parts() {
        let interests = Interests::default();
        for number in 0..BATCH + 1 {
            interests.gained(&Arc::from(number.to_string()));
        }
        let now = Instant::now();
        assert_eq!(interests.take(now).follow.len(), BATCH);
        assert_eq!(interests.take(now).follow.len(), 1);
        assert_eq!(interests.take(now), Changes::default());
    }
}
