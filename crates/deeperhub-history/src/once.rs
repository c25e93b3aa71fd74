//! Publishes that arrive twice because a client repeats them after a reconnect.

use crate::seconds::Seconds;
use deeperhub_types::Epoch;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

/// Bounds of a [`OnceWindow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnceLimits {
    /// Maximum number of publishes that are remembered. If there are more, the oldest one is
    /// forgotten. Default 65,536, which takes about 10 MiB with an answer of 16 bytes.
    pub publishes: usize,
    /// Maximum number of publishes that are remembered of one user, so that one user cannot push
    /// out those of others. Later ones are not remembered. Default 16,384.
    pub publishes_per_user: u32,
}

impl Default for OnceLimits {
    fn default() -> Self {
        Self { publishes: 65_536, publishes_per_user: 16_384 }
    }
}

impl OnceLimits {
    /// Sets [`Self::publishes`].
    #[must_use]
    pub const fn with_publishes(mut self, publishes: usize) -> Self {
        self.publishes = publishes;
        self
    }

    /// Sets [`Self::publishes_per_user`].
    #[must_use]
    pub const fn with_publishes_per_user(mut self, publishes: u32) -> Self {
        self.publishes_per_user = publishes;
        self
    }
}

/// The publishes of the last two minutes that must not be stored again, with their answers.
///
/// Two publishes are the same if topic, epoch, user and the publisher's text are. An emptied stream
/// has a new epoch, so nothing from before counts. The window remembers 128-bit hashes with secret
/// seeds instead of the texts, so that its memory is bounded.
///
/// ```
/// use deeperhub_history::{Epoch, OnceLimits, OnceWindow, Seconds};
///
/// let mut window = OnceWindow::new([1, 2], OnceLimits::default());
/// let key = window.key("orders", Epoch::from_bits(7), Some("ada"), "order-17");
/// assert_eq!(window.get(&key, Seconds::new(0)), None);
/// window.insert(key, "offset 41", Seconds::new(0));
/// assert_eq!(window.get(&key, Seconds::new(119)), Some(&"offset 41"));
/// assert_eq!(window.get(&key, Seconds::new(121)), None);
/// ```
#[derive(Debug)]
pub struct OnceWindow<A> {
    seeds: [u64; 2],
    limits: OnceLimits,
    answers: HashMap<u128, Remembered<A>, BuildHasherDefault<LowBits>>,
    /// Hashes in the order of their time. A hash whose time differs from the answer's is outdated.
    order: VecDeque<(Seconds, u128)>,
    users: HashMap<u64, u32, BuildHasherDefault<LowBits>>,
}

#[derive(Debug)]
struct Remembered<A> {
    answer: A,
    at: Seconds,
    user: u64,
}

/// A publish in a [`OnceWindow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnceKey {
    hash: u128,
    user: u64,
}

/// Outdated publishes that one call forgets at most. More than the one that it can add.
const MAX_FORGOTTEN_PER_CALL: usize = 4;

impl<A> OnceWindow<A> {
    /// Time for which a publish is remembered, in seconds.
    pub const SECONDS: u32 = 120;

    /// Maximum length of the publisher's text in bytes. Callers refuse longer ones.
    pub const MAX_TEXT_BYTES: usize = 64;

    /// Creates an empty window. `seeds` are random numbers that clients must not know.
    #[must_use]
    pub fn new(seeds: [u64; 2], limits: OnceLimits) -> Self {
        Self { seeds, limits, answers: HashMap::default(), order: VecDeque::new(), users: HashMap::default() }
    }

    /// Changes the bounds. Publishes beyond them are forgotten when later ones are remembered.
    pub const fn set_limits(&mut self, limits: OnceLimits) {
        self.limits = limits;
    }

    /// Returns the key of a publish. All publishers without a user count as one user.
    #[must_use]
    pub fn key(&self, topic: &str, epoch: Epoch, user: Option<&str>, text: &str) -> OnceKey {
        let [high, low] = self.seeds.map(|seed| hash((seed, topic, epoch, user, text)));
        OnceKey { hash: u128::from(high) << 64 | u128::from(low), user: hash((self.seeds, user)) }
    }

    /// Returns the answer to the first publish with this key, if it is remembered.
    pub fn get(&mut self, key: &OnceKey, now: Seconds) -> Option<&A> {
        self.forget_outdated(now);
        let remembered = self.answers.get(&key.hash)?;
        (now.since(remembered.at) <= Self::SECONDS).then_some(&remembered.answer)
    }

    /// Remembers the answer to a publish. Returns `false` if too many publishes of this user are
    /// remembered.
    pub fn insert(&mut self, key: OnceKey, answer: A, now: Seconds) -> bool {
        self.forget_outdated(now);
        if self.limits.publishes == 0 {
            return false;
        }
        while self.order.len() >= self.limits.publishes {
            self.forget_oldest();
        }
        match self.answers.entry(key.hash) {
            Entry::Occupied(mut occupied) => {
                *occupied.get_mut() = Remembered { answer, at: now, user: key.user };
            }
            Entry::Vacant(vacant) => {
                let publishes = self.users.entry(key.user).or_default();
                if *publishes >= self.limits.publishes_per_user {
                    if *publishes == 0 {
                        self.users.remove(&key.user);
                    }
                    return false;
                }
                *publishes += 1;
                vacant.insert(Remembered { answer, at: now, user: key.user });
            }
        }
        self.order.push_back((now, key.hash));
        true
    }

    /// Returns the number of publishes that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Returns `true` if no publish is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    fn forget_outdated(&mut self, now: Seconds) {
        for _ in 0..MAX_FORGOTTEN_PER_CALL {
            match self.order.front() {
                Some((at, _)) if now.since(*at) > Self::SECONDS => self.forget_oldest(),
                _ => return,
            }
        }
    }

    fn forget_oldest(&mut self) {
        let Some((at, hash)) = self.order.pop_front() else { return };
        if let Entry::Occupied(occupied) = self.answers.entry(hash)
            && occupied.get().at == at
        {
            let user = occupied.remove().user;
            if let Entry::Occupied(mut publishes) = self.users.entry(user) {
                *publishes.get_mut() = publishes.get().saturating_sub(1);
                if *publishes.get() == 0 {
                    publishes.remove();
                }
            }
        }
        if self.order.is_empty() {
            // After a burst, the memory is free again.
            self.order = VecDeque::new();
            self.answers.shrink_to_fit();
            self.users.shrink_to_fit();
        }
    }
}

/// Returns the hash of a value that starts with a secret seed.
fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Hasher for keys that are hashes themselves: takes their lowest bits.
#[derive(Debug, Default)]
struct LowBits(u64);

impl Hasher for LowBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Keys are `u64` or `u128`. Anything else would still be hashed, if not well.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EPOCH: fn(u64) -> Epoch = Epoch::from_bits;

    #[test]
    fn topic_epoch_user_and_text_make_a_publish() {
        let window = OnceWindow::<()>::new([1, 2], OnceLimits::default());
        let keys = [
            window.key("a", EPOCH(1), Some("u"), "x"),
            window.key("b", EPOCH(1), Some("u"), "x"),
            window.key("a", EPOCH(2), Some("u"), "x"),
            window.key("a", EPOCH(1), Some("v"), "x"),
            window.key("a", EPOCH(1), None, "x"),
            window.key("a", EPOCH(1), Some("u"), "y"),
            window.key("a", EPOCH(1), Some("ux"), ""),
            OnceWindow::<()>::new([1, 3], OnceLimits::default()).key("a", EPOCH(1), Some("u"), "x"),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(keys[..index].iter().all(|other| other.hash != key.hash), "{index}");
        }
        assert_eq!(keys[0], window.key("a", EPOCH(1), Some("u"), "x"));
        assert_eq!((keys[0].user, keys[0].user == keys[3].user), (keys[1].user, false));
    }

    #[test]
    fn a_user_cannot_push_out_the_publishes_of_others() {
        let limits = OnceLimits::default().with_publishes(10).with_publishes_per_user(5);
        let mut window = OnceWindow::new([1, 2], limits);
        let of = |window: &OnceWindow<u32>, user: &str, number: u32| {
            window.key("a", EPOCH(1), Some(user), &number.to_string())
        };
        let first = of(&window, "ada", 0);
        assert!(window.insert(first, 7, Seconds::new(0)));
        let flood = (0..100).filter(|&number| {
            let key = of(&window, "eve", number);
            window.insert(key, number, Seconds::new(0))
        });
        assert_eq!(flood.count(), 5);
        assert_eq!(window.get(&first, Seconds::new(0)), Some(&7));
        // The oldest one is forgotten if there are too many of all users together.
        for number in 0..5 {
            let key = of(&window, &format!("user {number}"), number);
            assert!(window.insert(key, number, Seconds::new(1)));
        }
        assert_eq!((window.len(), window.get(&first, Seconds::new(1))), (10, None));
    }

    #[test]
    fn lower_limits_forget_the_oldest_publishes() {
        let mut window = OnceWindow::new([1, 2], OnceLimits::default());
        let keys: Vec<_> =
            (0..10).map(|number| window.key("a", EPOCH(1), None, &number.to_string())).collect();
        keys[..9].iter().for_each(|key| assert!(window.insert(*key, 0, Seconds::new(0))));
        window.set_limits(OnceLimits::default().with_publishes(3));
        assert!(window.insert(keys[9], 0, Seconds::new(1)));
        let known = keys.iter().filter(|key| window.get(key, Seconds::new(1)).is_some());
        assert!(known.eq(&keys[7..]));
    }

    #[test]
    fn a_publish_that_comes_again_after_the_window_is_remembered_anew() {
        let mut window = OnceWindow::new([1, 2], OnceLimits::default());
        let keys: Vec<_> =
            (0..10).map(|number| window.key("a", EPOCH(1), None, &number.to_string())).collect();
        keys.iter().for_each(|key| assert!(window.insert(*key, 0, Seconds::new(0))));
        let last = &keys[9];
        assert_eq!(window.get(last, Seconds::new(121)), None);
        assert!(window.insert(*last, 1, Seconds::new(121)));
        // The entries of the first time are forgotten meanwhile.
        for _ in 0..10 {
            assert_eq!(window.get(last, Seconds::new(241)), Some(&1));
        }
        assert_eq!((window.len(), window.order.len(), window.users.values().sum::<u32>()), (1, 1, 1));
    }

    #[test]
    fn memory_is_free_after_the_window() {
        let mut window = OnceWindow::new([1, 2], OnceLimits::default());
        for number in 0..1000_u32 {
            let key = window.key("a", EPOCH(1), None, &number.to_string());
            window.insert(key, (), Seconds::new(0));
        }
        let other = window.key("a", EPOCH(1), None, "other");
        for _ in 0..1000 / MAX_FORGOTTEN_PER_CALL {
            assert_eq!(window.get(&other, Seconds::new(500)), None);
        }
        assert!(window.is_empty() && window.users.is_empty());
        assert_eq!((window.order.capacity(), window.answers.capacity(), window.users.capacity()), (0, 0, 0));
    }

    proptest! {
        /// Below the limits, the window answers like a list of all publishes.
        #[test]
        fn the_window_agrees_with_a_list(
            publishes in proptest::collection::vec((0..30_u32, 0..3_u8, 0..40_u32), 0..300),
        ) {
            let mut window = OnceWindow::new([3, 4], OnceLimits::default());
            let (mut list, mut now) = (Vec::<(u32, u8, u32)>::new(), 0);
            for (number, (text, user, pause)) in (0_u32..).zip(publishes) {
                now += pause;
                let key = window.key("a", EPOCH(1), Some(&user.to_string()), &text.to_string());
                let first = list.iter().position(|&(of, by, at)| of == text && by == user && now - at <= 120);
                let answer = window.get(&key, Seconds::new(now)).copied();
                prop_assert_eq!(answer, first.map(|index| index as u32));
                // A repeated publish is answered like the first one, and not remembered again.
                let at = if first.is_none() { now } else { 0 };
                list.push((if first.is_none() { text } else { u32::MAX }, user, at));
                if first.is_none() {
                    prop_assert!(window.insert(key, number, Seconds::new(now)));
                }
                prop_assert!(window.order.len() <= window.limits.publishes);
                let counted: u32 = window.users.values().sum();
                prop_assert_eq!(counted as usize, window.len());
            }
        }
    }
}
