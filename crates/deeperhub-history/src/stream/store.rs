//! Streams whose messages a store keeps, too.

use super::{Predecessor, Rest, Stream};
use crate::evicted::{Evicted, EvictionReason};
use crate::policy::Retention;
use crate::seconds::Seconds;
use crate::stored::{Stored, StoredPart};

/// State of a stream beside its store.
#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) predecessor: Option<Predecessor>,
    pub(super) stored: Stored,
}

impl<M> Stream<M> {
    /// Notes the messages that the store has before those of [`Self::restore`], oldest first. They
    /// have no hole, neither among them nor towards those in memory.
    #[must_use]
    pub fn with_stored(mut self, parts: impl IntoIterator<Item = StoredPart>) -> Self {
        for part in parts {
            if let Some(state) = self.store_state_mut() {
                state.stored.push(part);
            }
        }
        self
    }

    /// Returns the predecessor that [`Self::restore`] was given.
    #[must_use]
    pub fn predecessor(&self) -> Option<&Predecessor> {
        self.store_state()?.predecessor.as_ref()
    }

    /// Returns the offset of the oldest message within `bounds` that is in memory or that a store
    /// has; the next offset if there is none. The store has all messages whose time is at least
    /// `since`.
    ///
    /// Messages leave the memory for the budget only, and stay in the store. The returned offset can
    /// be somewhat too high, because the stream does not know each stored message.
    #[must_use]
    pub fn oldest_stored(&self, bounds: &Retention, now: Seconds, since: Seconds) -> u64 {
        let oldest = self.oldest();
        let Some(state) = self.store_state() else { return oldest };
        let stored = state.stored.oldest(bounds, (self.newest, self.ring.bytes()), (now, since));
        stored.map_or(oldest, |stored| stored.min(oldest))
    }

    /// Evicts the oldest message for the budget. A store still has it. Returns `false` if there is
    /// none.
    pub(crate) fn evict_stored(
        &mut self,
        bounds: &Retention,
        now: Seconds,
        evicted: &mut Evicted<M>,
    ) -> bool {
        // The store that gives sparse offsets is read by a mirror, not by cursors.
        if self.sparse().is_some() {
            return self.evict(EvictionReason::Budget, evicted);
        }
        let offset = self.oldest();
        let Some(slot) = self.ring.pop() else { return false };
        let left = self.ring.bytes();
        let Some(StoreState { stored, .. }) = self.store_state_mut() else { return true };
        stored.trim(bounds, left.saturating_add(slot.bytes), now);
        stored.push(StoredPart { offset, bytes: slot.bytes.into(), at: slot.at });
        evicted.push(slot.message, slot.bytes as usize, EvictionReason::Budget);
        true
    }

    /// Forgets the messages that only a store has.
    pub(super) fn forget_stored(&mut self) {
        let Some(Rest::Store(state)) = self.rest.as_deref_mut() else { return };
        if state.predecessor.is_none() {
            self.rest = None;
        } else if !state.stored.is_empty() {
            state.stored = Stored::default();
        }
    }

    /// Returns the time of the newest message that only a store has.
    pub(crate) fn stored_at(&self) -> Option<Seconds> {
        self.store_state()?.stored.newest_at()
    }

    fn store_state(&self) -> Option<&StoreState> {
        match self.rest.as_deref()? {
            Rest::Store(state) => Some(state),
            Rest::Sparse(_) => None,
        }
    }

    /// Returns the state beside a store, or `None` for sparse offsets.
    fn store_state_mut(&mut self) -> Option<&mut StoreState> {
        let new = || Box::new(Rest::Store(StoreState::default()));
        match &mut **self.rest.get_or_insert_with(new) {
            Rest::Store(state) => Some(state),
            Rest::Sparse(_) => None,
        }
    }
}
