//! A model of a store.

use crate::{ReadRequest, Seconds, StorePosition, StoredMessage, StreamRead};
use std::collections::BTreeMap;

/// Numbers that a seed determines.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }

    /// Returns a number below `end`.
    pub(super) const fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    /// Returns `true` in one of `of` cases.
    pub(super) const fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Message,
    /// The store has the same message at an earlier offset.
    Duplicate,
    /// Nobody can read the message.
    Damaged,
}

/// An entry that the store has, or had.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) prev: u64,
    pub(super) content: u64,
    pub(super) kind: Kind,
    /// `true` after a crash has lost it.
    pub(super) is_lost: bool,
}

#[derive(Debug)]
pub(super) struct Store {
    pub(super) epoch: u64,
    pub(super) top: u64,
    /// All entries of all epochs.
    pub(super) entries: BTreeMap<(u64, u64), Entry>,
    /// Offset up to which the bounds have evicted the entries of each epoch.
    pub(super) floors: BTreeMap<u64, u64>,
    /// Number of crashes and removals.
    pub(super) disruptions: u64,
    last_epoch: u64,
    history: usize,
    is_sparse: bool,
    contents: u64,
}

impl Store {
    pub(super) fn new(history: usize, is_sparse: bool) -> Self {
        let (epoch, top, last_epoch, disruptions, contents) = (0, 0, 0, 0, 0);
        let (entries, floors) = (BTreeMap::new(), BTreeMap::new());
        Self { epoch, top, entries, floors, disruptions, last_epoch, history, is_sparse, contents }
    }

    pub(super) const fn position(&self) -> StorePosition {
        StorePosition { epoch: self.epoch, offset: self.top }
    }

    pub(super) fn floor(&self, epoch: u64) -> u64 {
        self.floors.get(&epoch).copied().unwrap_or(0)
    }

    /// Returns the offsets of the present entries.
    fn kept(&self) -> impl DoubleEndedIterator<Item = (u64, &Entry)> {
        let range = (self.epoch, self.floor(self.epoch) + 1)..=(self.epoch, self.top);
        let entries = if range.is_empty() { None } else { Some(self.entries.range(range)) };
        let entries = entries.into_iter().flatten();
        entries.map(|((_, offset), entry)| (*offset, entry)).filter(|(_, entry)| !entry.is_lost)
    }

    /// Starts a new epoch, as a removal of all messages does.
    pub(super) fn start_epoch(&mut self) {
        self.last_epoch += 1;
        (self.epoch, self.top) = (self.last_epoch, 0);
    }

    /// Loses all, and its epoch too.
    pub(super) fn wipe(&mut self) {
        self.disruptions += 1;
        (self.epoch, self.top) = (0, 0);
    }

    /// Starts a new epoch if the store has less than a node knows, or no epoch.
    pub(super) fn compare(&mut self, known: Option<StorePosition>) {
        if let Some(known) = known.filter(|known| *known > self.position()) {
            debug_assert!(known.epoch <= self.last_epoch);
            self.start_epoch();
        } else if self.epoch == 0 {
            self.start_epoch();
        }
    }

    /// Appends an entry. Returns its live message, unless nobody can read it.
    pub(super) fn append(
        &mut self,
        known: Option<StorePosition>,
        now: Seconds,
        random: &mut Random,
    ) -> Option<(u64, StoredMessage<u64>)> {
        self.compare(known);
        let prev = self.top;
        self.top += if self.is_sparse { 1 + random.below(4) } else { 1 };
        let kind = match random.below(24) {
            0 => Kind::Duplicate,
            1 => Kind::Damaged,
            _ => Kind::Message,
        };
        self.contents += 1;
        let entry = Entry { prev, content: self.contents, kind, is_lost: false };
        self.entries.insert((self.epoch, self.top), entry);
        while self.kept().count() > self.history {
            self.evict();
        }
        (kind != Kind::Damaged).then(|| (self.epoch, message(self.top, &entry, now)))
    }

    /// Evicts the oldest entry.
    pub(super) fn evict(&mut self) {
        let oldest = self.kept().next().map(|(offset, _)| offset);
        if let Some(oldest) = oldest {
            self.floors.insert(self.epoch, oldest);
        }
    }

    /// Loses the newest entries, up to `count`.
    pub(super) fn crash(&mut self, count: u64) {
        self.disruptions += 1;
        let lost: Vec<u64> = self.kept().rev().take(count as usize).map(|(offset, _)| offset).collect();
        for offset in lost {
            if let Some(entry) = self.entries.get_mut(&(self.epoch, offset)) {
                entry.is_lost = true;
                self.top = entry.prev;
            }
        }
    }

    /// Answers a read with at most `limit` messages, by a replica that lacks the newest `lag`
    /// entries.
    pub(super) fn read(
        &mut self,
        request: &ReadRequest,
        (limit, lag): (usize, usize),
        now: Seconds,
        random: &mut Random,
    ) -> StreamRead<u64> {
        self.compare(None);
        let after = request.after.filter(|after| after.epoch == self.epoch).map_or(0, |after| after.offset);
        let mut floor = self.floor(self.epoch);
        let after = match request.after {
            // Only the last messages are wanted.
            None => {
                let last = self.kept().rev().nth(limit).map_or(0, |(offset, _)| offset);
                floor = floor.max(last);
                last
            }
            Some(_) => after,
        };
        let newest_lacked = self.kept().rev().take(lag).last();
        let top = newest_lacked.map_or(self.top, |(_, entry)| entry.prev);
        let is_wanted = |offset: u64| offset > after && offset <= top;
        let readable =
            self.kept().filter(|(offset, entry)| is_wanted(*offset) && entry.kind != Kind::Damaged);
        let mut messages: Vec<_> =
            readable.take(limit).map(|(offset, entry)| message(offset, entry, now)).collect();
        // A store can know only whether all messages after the position are there.
        if self.is_sparse
            && random.one_in(2)
            && let Some(first) = messages.first_mut()
            && first.prev <= floor.max(after)
        {
            first.prev = 0;
            floor = if floor > after { first.offset - 1 } else { after };
        }
        StreamRead { epoch: self.epoch, top, floor: floor.min(top), whole_to: 0, messages }
    }
}

fn message(offset: u64, entry: &Entry, at: Seconds) -> StoredMessage<u64> {
    let is_duplicate = entry.kind == Kind::Duplicate;
    StoredMessage { offset, prev: entry.prev, message: entry.content, bytes: 10, at, is_duplicate }
}
