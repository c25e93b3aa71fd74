//! The streams under one lock, with their expiry and the eviction within the budget.

mod append;
mod given;
mod queues;
mod reload;

use crate::budget::Budget;
use crate::evicted::{Evicted, EvictionReason};
use crate::policy::Policy;
use crate::rules::RuleId;
use crate::seconds::Seconds;
use crate::stream::Stream;
use deeperhub_types::Epoch;
pub use given::Applied;
use queues::{Queued, RuleQueues};
pub use reload::RemovedStream;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Maximum number of messages that one append evicts for the budget, which bounds the time under the
/// lock after the limit was lowered. A message of 64 KiB replaces about as many of the shortest.
const MAX_EVICTED_PER_APPEND: usize = 512;

/// Streams under one lock. The table has no lock itself: its owner calls it under its own.
///
/// `M` is the kept message, ideally a handle such as an `Arc`. `N` is the caller's name of a stream,
/// which it gets back when the table removes the stream.
///
/// A program with several threads has several tables that share a [`Budget`]. Each table evicts its
/// own oldest messages, so no call needs the lock of another table. If a table has nothing left that
/// it may evict ([`Appended::is_over_budget`]), the caller lets another one [`sweep`](Self::sweep).
///
/// Streams without messages and subscribers are removed after some time
/// ([`BudgetLimits::forget`](crate::BudgetLimits::forget)). The table keeps twelve bytes for each of
/// the streams that it had at its largest.
#[derive(Debug)]
pub struct StreamTable<M, N> {
    budget: Arc<Budget>,
    /// Streams by index. A free index is in `free`.
    entries: Vec<Option<Box<Entry<M, N>>>>,
    free: Vec<u32>,
    /// Queues of each rule.
    queues: Vec<RuleQueues>,
    /// Number of streams that were ever added, modulo 2 to the power of 32.
    generation: u32,
    messages: u64,
    /// `true` if a store has the messages that the budget evicts.
    has_store: bool,
}

/// Number of a stream in its table. The number of a removed stream is not used again, until four
/// billion streams later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
struct Entry<M, N> {
    stream: Stream<M>,
    name: N,
    generation: u32,
    rule: RuleId,
    /// `true` if the stream has subscribers.
    is_followed: bool,
    queued: Queued,
    /// Time of the last publish, subscribe or unsubscribe.
    touched: Seconds,
    /// Time since which the stream has neither messages nor subscribers, if it has none now.
    spent_since: Seconds,
}

/// Result of [`StreamTable::open`].
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<N> {
    /// The new stream.
    pub id: StreamId,
    /// Name of the stream that was removed to make room for it.
    pub replaced: Option<N>,
}

/// Result of [`StreamTable::append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The stream's epoch.
    pub epoch: Epoch,
    /// The message's offset.
    pub offset: u64,
    /// `true` if the budget is exceeded and this table cannot help: it has nothing left that it may
    /// evict, or has evicted as much as one append may. The caller should then sweep the next table,
    /// after it released the lock of this one.
    pub is_over_budget: bool,
}

/// Result of [`StreamTable::sweep`].
#[derive(Debug, PartialEq, Eq)]
pub struct Swept<N> {
    /// Names of the streams that were removed.
    pub removed: Vec<N>,
    /// `true` if the sweep stopped at its limit, so that there can be more to do.
    pub has_more: bool,
}

/// Reason why a stream cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// The rule keeps no messages, or does not exist.
    NoHistory,
    /// The rule has as many streams as it may have, and all of them in this table have subscribers.
    /// Streams of other tables can make room ([`StreamTable::remove_idlest`]).
    TooManyStreams,
}

impl fmt::Display for OpenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoHistory => "the topic's rule keeps no history; set `history` to 1 or more",
            Self::TooManyStreams => "too many topics have a history; raise the rule's `max_streams`",
        })
    }
}

impl Error for OpenError {}

impl<M, N> StreamTable<M, N> {
    /// Creates an empty table.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        let queues = RuleQueues::for_rules(&budget);
        Self {
            budget,
            entries: Vec::new(),
            free: Vec::new(),
            queues,
            generation: 0,
            messages: 0,
            has_store: false,
        }
    }

    /// Tells the table that a store has all messages. Streams then remember what the budget evicts
    /// ([`Self::oldest_stored`]).
    #[must_use]
    pub const fn with_store(mut self) -> Self {
        self.has_store = true;
        self
    }

    /// Returns the budget.
    #[must_use]
    pub const fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Returns the number of streams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Returns `true` if there are no streams.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of kept messages of all streams.
    #[must_use]
    pub const fn messages(&self) -> u64 {
        self.messages
    }

    /// Returns a stream, or `None` if it was removed. Messages that expired since the last sweep are
    /// still in it.
    #[must_use]
    pub fn get(&self, id: StreamId) -> Option<&Stream<M>> {
        Some(&self.entry(id)?.stream)
    }

    /// Returns the rule of a stream.
    #[must_use]
    pub fn rule(&self, id: StreamId) -> Option<RuleId> {
        Some(self.entry(id)?.rule)
    }

    /// Returns the caller's name of a stream.
    #[must_use]
    pub fn name(&self, id: StreamId) -> Option<&N> {
        Some(&self.entry(id)?.name)
    }

    /// Returns the caller's name of a stream, to change it.
    pub fn name_mut(&mut self, id: StreamId) -> Option<&mut N> {
        Some(&mut self.entry_mut(id)?.name)
    }

    /// Returns the offset of the oldest message of a stream in memory or in the store
    /// ([`Stream::oldest_stored`]), or `None` if the stream was removed.
    #[must_use]
    pub fn oldest_stored(&self, id: StreamId, now: Seconds, since: Seconds) -> Option<u64> {
        let entry = self.entry(id)?;
        Some(entry.stream.oldest_stored(&self.policy(entry.rule)?.retention(), now, since))
    }

    /// Evicts the expired messages of a stream and returns the stream, or `None` if it was removed.
    pub fn current(&mut self, id: StreamId, now: Seconds, evicted: &mut Evicted<M>) -> Option<&Stream<M>> {
        let ttl = self.policy(self.entry(id)?.rule)?.retention().ttl_seconds;
        self.change(id, now, |stream| stream.expire(ttl, now, evicted));
        self.get(id)
    }

    /// Adds an empty stream with the epoch of `random` ([`Epoch::from_bits`]). It has no
    /// subscriber yet ([`Self::set_followed`]).
    ///
    /// If the rule may have no more streams, the stream of this rule takes the place of the one in
    /// this table that has no subscriber and was idle longest.
    ///
    /// # Errors
    /// Returns [`OpenError`] if there is no place.
    pub fn open(
        &mut self,
        rule: RuleId,
        name: N,
        random: u64,
        now: Seconds,
        evicted: &mut Evicted<M>,
    ) -> Result<Opened<N>, OpenError> {
        self.insert(rule, name, Stream::new(Epoch::from_bits(random)), now, evicted)
    }

    /// Adds a stream that a store has kept ([`Stream::restore`]). Evicts what exceeds the rule and
    /// the budget. Unlike [`Self::open`], it removes no other stream: callers add those with the
    /// newest messages first.
    ///
    /// # Errors
    /// Returns [`OpenError`] if there is no place.
    pub fn restore(
        &mut self,
        rule: RuleId,
        name: N,
        mut stream: Stream<M>,
        now: Seconds,
        evicted: &mut Evicted<M>,
    ) -> Result<StreamId, OpenError> {
        let policy = self.policy(rule).filter(|policy| policy.keeps_history()).ok_or(OpenError::NoHistory)?;
        let bounds = policy.retention();
        if !self.budget.try_add_stream(rule) {
            return Err(OpenError::TooManyStreams);
        }
        stream.expire(bounds.ttl_seconds, now, evicted);
        stream.trim(&bounds, evicted);
        let id = self.add(rule, name, stream, now, evicted);
        self.note_spent(id, now);
        Ok(id)
    }

    fn insert(
        &mut self,
        rule: RuleId,
        name: N,
        stream: Stream<M>,
        now: Seconds,
        evicted: &mut Evicted<M>,
    ) -> Result<Opened<N>, OpenError> {
        self.policy(rule).filter(|policy| policy.keeps_history()).ok_or(OpenError::NoHistory)?;
        let mut replaced = None;
        if !self.budget.try_add_stream(rule) {
            let idlest = self.idlest(rule).ok_or(OpenError::TooManyStreams)?;
            // The new stream is counted in its place, so no other thread can take it meanwhile.
            replaced = self.take(idlest, evicted);
        }
        Ok(Opened { id: self.add(rule, name, stream, now, evicted), replaced })
    }

    /// Adds a stream that the budget has counted.
    fn add(
        &mut self,
        rule: RuleId,
        name: N,
        stream: Stream<M>,
        now: Seconds,
        evicted: &mut Evicted<M>,
    ) -> StreamId {
        let (added, messages) = (stream.charge(self.budget.message_overhead()), stream.len() as u64);
        self.generation = self.generation.wrapping_add(1);
        let entry = Box::new(Entry {
            stream,
            name,
            generation: self.generation,
            rule,
            is_followed: false,
            queued: Queued::default(),
            touched: now,
            spent_since: now,
        });
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(None);
                // `Policy::MAX_STREAMS` is far below the limit of the number.
                (self.entries.len() - 1) as u32
            }
        };
        self.entries[index as usize] = Some(entry);
        self.queues[rule.index()].streams += 1;
        self.messages += messages;
        self.budget.adjust(rule, added, 0);
        let id = StreamId { index, generation: self.generation };
        self.enqueue(id);
        self.evict_over_budget(Some(rule), now, MAX_EVICTED_PER_APPEND, evicted);
        id
    }

    /// Tells the table whether a stream has subscribers. A stream with subscribers is never removed
    /// to make room.
    pub fn set_followed(&mut self, id: StreamId, is_followed: bool, now: Seconds) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.is_followed = is_followed;
        entry.touched = now;
        self.note_spent(id, now);
        self.enqueue(id);
    }

    /// Empties a stream and starts a new epoch ([`Stream::clear`]). Returns `false` if the stream
    /// was removed.
    pub fn clear(&mut self, id: StreamId, random: u64, now: Seconds, evicted: &mut Evicted<M>) -> bool {
        self.change(id, now, |stream| stream.clear(random, evicted))
    }

    /// Removes a stream and returns its name.
    pub fn remove(&mut self, id: StreamId, evicted: &mut Evicted<M>) -> Option<N> {
        let rule = self.entry(id)?.rule;
        let name = self.take(id, evicted)?;
        self.budget.remove_stream(rule);
        Some(name)
    }

    /// Removes a stream, but leaves it in the budget's number of streams.
    fn take(&mut self, id: StreamId, evicted: &mut Evicted<M>) -> Option<N> {
        let rule = self.entry(id)?.rule;
        let mut entry = self.entries[id.index as usize].take()?;
        self.free.push(id.index);
        self.queues[rule.index()].streams -= 1;
        self.messages -= entry.stream.len() as u64;
        self.budget.adjust(rule, 0, entry.stream.charge(self.budget.message_overhead()));
        while entry.stream.evict(EvictionReason::Removed, evicted) {}
        Some(entry.name)
    }

    /// Removes the stream of a rule that has no subscriber and was idle longest. Returns its name,
    /// or `None` if all streams of the rule in this table have subscribers.
    pub fn remove_idlest(&mut self, rule: RuleId, evicted: &mut Evicted<M>) -> Option<N> {
        let id = self.idlest(rule)?;
        self.remove(id, evicted)
    }

    /// Evicts expired messages, removes streams without messages and subscribers, and evicts what
    /// exceeds the budget.
    ///
    /// Handles at most `max` messages and streams, which bounds the time under the lock. Callers
    /// sweep each table once per second.
    pub fn sweep(&mut self, now: Seconds, max: usize, evicted: &mut Evicted<M>) -> Swept<N> {
        let (mut removed, mut left) = (Vec::new(), max);
        for index in 0..self.queues.len() {
            let rule = RuleId::from_index(index);
            left -= self.expire(rule, now, left, evicted);
            while left > 0
                && let Some(id) = self.forgettable(rule, now)
            {
                removed.extend(self.remove(id, evicted));
                left -= 1;
            }
        }
        left -= self.evict_over_budget(None, now, left, evicted);
        Swept { removed, has_more: left == 0 }
    }

    /// Returns the memory of the table on the heap, without what messages and names point to.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let entries = self.entries.iter().flatten();
        let streams: usize = entries.map(|entry| size_of_val(&**entry) + entry.stream.heap_bytes()).sum();
        let queues = self
            .queues
            .iter()
            .map(|queues| queues.by_age.heap_bytes() + queues.idle.heap_bytes() + queues.spent.heap_bytes());
        streams
            + queues.sum::<usize>()
            + self.entries.capacity() * size_of::<Option<Box<Entry<M, N>>>>()
            + self.free.capacity() * size_of::<u32>()
            + self.queues.capacity() * size_of::<RuleQueues>()
    }

    fn entry(&self, id: StreamId) -> Option<&Entry<M, N>> {
        let entry = self.entries.get(id.index as usize)?.as_deref()?;
        (entry.generation == id.generation).then_some(entry)
    }

    fn entry_mut(&mut self, id: StreamId) -> Option<&mut Entry<M, N>> {
        live_entry(&mut self.entries, id)
    }

    fn policy(&self, rule: RuleId) -> Option<&Policy> {
        Some(self.budget.rules().get(rule)?.policy())
    }

    /// Changes a stream by evictions and updates all counts. Returns `false` if the stream was
    /// removed.
    fn change(&mut self, id: StreamId, now: Seconds, change: impl FnOnce(&mut Stream<M>)) -> bool {
        let overhead = self.budget.message_overhead();
        let Some(entry) = self.entry_mut(id) else { return false };
        let (rule, charge, messages) = (entry.rule, entry.stream.charge(overhead), entry.stream.len());
        change(&mut entry.stream);
        let (left, messages_left) = (entry.stream.charge(overhead), entry.stream.len());
        self.messages -= (messages - messages_left) as u64;
        self.budget.adjust(rule, left, charge);
        if messages != messages_left {
            self.note_spent(id, now);
            self.enqueue(id);
        }
        true
    }
}

/// Gives the bytes and streams back to the budget.
impl<M, N> Drop for StreamTable<M, N> {
    fn drop(&mut self) {
        for entry in self.entries.iter().flatten() {
            self.budget.adjust(entry.rule, 0, entry.stream.charge(self.budget.message_overhead()));
            self.budget.remove_stream(entry.rule);
        }
    }
}

impl<M, N> Entry<M, N> {
    /// Returns `true` if the stream has neither messages nor subscribers.
    fn is_spent(&self) -> bool {
        !self.is_followed && self.stream.is_empty()
    }
}

/// Returns the entry of a stream that was not removed.
fn live_entry<M, N>(entries: &mut [Option<Box<Entry<M, N>>>], id: StreamId) -> Option<&mut Entry<M, N>> {
    let entry = entries.get_mut(id.index as usize)?.as_deref_mut()?;
    (entry.generation == id.generation).then_some(entry)
}

#[cfg(test)]
mod tests;
