//! Storage for the numbers of instruments.
//!
//! A slot is one 64-bit number. A block is a fixed number of slots: each worker has one, and one
//! more is shared. An instrument is the same range of slots in each of these blocks.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Number of slots in a block: 2 KiB, which is enough for all instruments of a typical worker.
const SLOTS_PER_BLOCK: usize = 256;

/// Maximum number of slots of an instrument. A [`CounterVec`](crate::CounterVec) needs one for each
/// value of its label; a histogram needs one for each bucket and one for the sum.
pub(crate) const MAX_INSTRUMENT_SLOTS: usize = SLOTS_PER_BLOCK;

/// Storage for the numbers of instruments: a memory block for each worker, which only that worker
/// writes, and a shared one for all other threads.
///
/// A worker's cells are adjacent in memory, and no other thread writes to their cache lines. A
/// worker that updates six instruments for a message therefore writes to one or two cache lines.
/// Instruments that are created with the same `Cells` share the blocks. When the blocks are full,
/// more are allocated.
///
/// The default has no workers. Cheap to clone. The memory lives as long as an instrument or cell
/// uses it.
#[derive(Debug, Clone, Default)]
pub struct Cells {
    inner: Arc<CellsInner>,
}

#[derive(Debug, Default)]
struct CellsInner {
    workers: usize,
    /// The blocks for the next instrument; `None` before the first one.
    open: Mutex<Option<OpenBlocks>>,
    /// Storage without workers.
    shared: OnceLock<Cells>,
}

/// Blocks with free slots.
#[derive(Debug)]
struct OpenBlocks {
    blocks: Arc<Blocks>,
    /// Number of reserved slots, which is the same in each block.
    used: usize,
}

/// A block for each worker, and one for all other threads.
#[derive(Debug)]
struct Blocks {
    workers: Box<[Arc<Block>]>,
    shared: Block,
}

impl Cells {
    /// Creates storage for `workers` workers, but at least for one.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { inner: Arc::new(CellsInner { workers: workers.max(1), ..CellsInner::default() }) }
    }

    /// Returns the number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.inner.workers
    }

    /// Returns storage without workers. Instruments that no worker has a cell of do not take up
    /// space in the workers' cache lines there.
    #[must_use]
    pub fn shared(&self) -> &Self {
        if self.inner.workers == 0 { self } else { self.inner.shared.get_or_init(Self::default) }
    }

    /// Reserves `slots` adjacent slots, at the same position in every block.
    ///
    /// # Panics
    ///
    /// Panics if `slots` is more than [`MAX_INSTRUMENT_SLOTS`], so an instrument that is too large
    /// panics when it is created.
    pub(crate) fn reserve(&self, slots: usize) -> SlotRange {
        assert!(
            slots <= MAX_INSTRUMENT_SLOTS,
            "an instrument has at most {MAX_INSTRUMENT_SLOTS} slots, not {slots}"
        );
        // The first slot's bit tells whether the instrument has an owner, so even an instrument
        // without numbers needs a slot.
        let slots = slots.max(1);
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match &mut *open {
            Some(open) if open.used + slots <= SLOTS_PER_BLOCK => open,
            full => full.insert(OpenBlocks { blocks: Arc::new(Blocks::new(self.inner.workers)), used: 0 }),
        };
        let first = open.used;
        open.used += slots;
        SlotRange { blocks: Arc::clone(&open.blocks), first, len: slots }
    }
}

impl Blocks {
    fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Arc::default()).collect(), shared: Block::default() }
    }
}

/// The slots of a worker, or of all other threads. The alignment keeps other blocks off the block's
/// cache lines, and also off the adjacent line, which some processors fetch too.
#[repr(align(128))]
struct Block {
    slots: [AtomicU64; SLOTS_PER_BLOCK],
    /// One bit for each slot, set if the instrument that starts at this slot has an owner. The bits
    /// are rarely accessed, so they are after the slots.
    owner_bits: [AtomicU64; SLOTS_PER_BLOCK / 64],
}

impl Default for Block {
    fn default() -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; SLOTS_PER_BLOCK],
            owner_bits: [const { AtomicU64::new(0) }; SLOTS_PER_BLOCK / 64],
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Hundreds of numbers without names would help nobody.
        f.debug_struct("Block").finish_non_exhaustive()
    }
}

impl Block {
    /// Returns the slot at `index`. The remainder avoids a bounds check; an index from
    /// [`Cells::reserve`] is always in range.
    #[inline]
    fn slot(&self, index: usize) -> &AtomicU64 {
        &self.slots[index % SLOTS_PER_BLOCK]
    }

    /// Returns the word that contains the bit of the slot at `index`, and a mask with this bit.
    fn owner_bit(&self, index: usize) -> (&AtomicU64, u64) {
        (&self.owner_bits[index / 64 % (SLOTS_PER_BLOCK / 64)], 1 << (index % 64))
    }
}

/// An instrument's slots in all blocks.
#[derive(Debug, Clone)]
pub(crate) struct SlotRange {
    blocks: Arc<Blocks>,
    first: usize,
    len: usize,
}

impl SlotRange {
    /// Returns the sum of the slot at `offset` over all blocks. The sum wraps around, so it is
    /// correct for signed numbers too.
    pub(crate) fn sum(&self, offset: usize) -> u64 {
        debug_assert!(offset < self.len);
        let slot = self.first + offset;
        let values = self.blocks.workers.iter().map(|block| block.slot(slot).load(Ordering::Relaxed));
        values.fold(self.shared(offset).load(Ordering::Relaxed), u64::wrapping_add)
    }

    /// Returns the shared slot at `offset`. Any thread may write it, with atomic additions.
    #[inline]
    pub(crate) fn shared(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset < self.len);
        self.blocks.shared.slot(self.first + offset)
    }

    /// Makes the caller the owner of a worker's slots. Returns an error if they have an owner.
    pub(crate) fn take(&self, worker: usize) -> Result<OwnedSlots, CellError> {
        let workers = self.blocks.workers.len();
        let block = self.blocks.workers.get(worker).ok_or(CellError::NoSuchWorker { worker, workers })?;
        let (word, bit) = block.owner_bit(self.first);
        // Pairs with the release in `OwnedSlots::drop`, so that a new owner sees the numbers of the
        // last owner.
        if word.fetch_or(bit, Ordering::Acquire) & bit != 0 {
            return Err(CellError::Taken { worker });
        }
        Ok(OwnedSlots { block: Arc::clone(block), first: self.first, len: self.len })
    }
}

/// One worker's slots of one instrument. Only the owner may write them.
#[derive(Debug)]
pub(crate) struct OwnedSlots {
    block: Arc<Block>,
    first: usize,
    len: usize,
}

impl OwnedSlots {
    /// Adds to a slot with a load and a store. Only the owner writes the slot, so no addition is
    /// lost.
    #[inline]
    pub(crate) fn add(&mut self, offset: usize, n: u64) {
        debug_assert!(offset < self.len);
        let slot = self.block.slot(self.first + offset);
        slot.store(slot.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn set(&mut self, offset: usize, value: u64) {
        debug_assert!(offset < self.len);
        self.block.slot(self.first + offset).store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn value(&self, offset: usize) -> u64 {
        debug_assert!(offset < self.len);
        self.block.slot(self.first + offset).load(Ordering::Relaxed)
    }
}

impl Drop for OwnedSlots {
    fn drop(&mut self) {
        let (word, bit) = self.block.owner_bit(self.first);
        word.fetch_and(!bit, Ordering::Release);
    }
}

/// The reason why a worker gets no cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CellError {
    /// The storage was created for fewer workers. This is a bug of the caller.
    #[error("worker {worker} has no cell, there are {workers} workers")]
    NoSuchWorker {
        /// The requested worker, counted from 0.
        worker: usize,
        /// The number of workers.
        workers: usize,
    },
    /// Another handle of this cell exists. A worker that replaces another must wait until the
    /// handles of the replaced worker are dropped. It then continues with their numbers.
    #[error("the cell of worker {worker} is in use")]
    Taken {
        /// The requested worker.
        worker: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the number of the 128-byte pair of cache lines that contains a slot.
    fn line(slots: &OwnedSlots, offset: usize) -> usize {
        std::ptr::from_ref(slots.block.slot(slots.first + offset)).addr() / 128
    }

    #[test]
    fn workers_never_share_a_cache_line() {
        const ANY_THREAD: usize = 3;
        let cells = Cells::new(3);
        let instruments: Vec<SlotRange> = (0..40).map(|_| cells.reserve(7)).collect();
        let mut owners = std::collections::HashMap::new();
        for slots in &instruments {
            for offset in 0..7 {
                owners.insert(std::ptr::from_ref(slots.shared(offset)).addr() / 128, ANY_THREAD);
            }
        }
        for worker in 0..3 {
            for slots in &instruments {
                let owned = slots.take(worker).unwrap();
                for offset in 0..7 {
                    assert_eq!(*owners.entry(line(&owned, offset)).or_insert(worker), worker);
                }
            }
        }
    }

    #[test]
    fn the_cells_of_a_worker_are_adjacent() {
        let cells = Cells::new(1);
        let (first, second) = (cells.reserve(3), cells.reserve(1));
        let (first, second) = (first.take(0).unwrap(), second.take(0).unwrap());
        assert_eq!(line(&first, 0), line(&second, 0));
    }

    #[test]
    fn a_cell_has_one_owner_at_a_time_and_keeps_its_number() {
        let slots = Cells::new(2).reserve(1);
        let mut owned = slots.take(1).unwrap();
        owned.add(0, 5);
        assert_eq!(slots.take(1).unwrap_err(), CellError::Taken { worker: 1 });
        assert!(slots.take(0).is_ok());
        drop(owned);
        let mut next = slots.take(1).unwrap();
        next.add(0, 1);
        assert_eq!((next.value(0), slots.sum(0)), (6, 6));
    }

    #[test]
    fn an_unknown_worker_has_no_cell() {
        let cells = Cells::new(2);
        assert_eq!(cells.workers(), 2);
        let error = cells.reserve(1).take(2).unwrap_err();
        assert_eq!(error, CellError::NoSuchWorker { worker: 2, workers: 2 });
        assert_eq!(error.to_string(), "worker 2 has no cell, there are 2 workers");
        assert_eq!(Cells::new(0).workers(), 1);
        let shared = Cells::default();
        let error = shared.reserve(1).take(0).unwrap_err();
        assert_eq!(error, CellError::NoSuchWorker { worker: 0, workers: 0 });
        assert!(Arc::ptr_eq(&shared.shared().inner, &shared.inner));
    }

    #[test]
    fn an_instrument_without_numbers_does_not_block_other_instruments() {
        let cells = Cells::new(1);
        let (none, one) = (cells.reserve(0), cells.reserve(1));
        let _none = none.take(0).unwrap();
        assert!(one.take(0).is_ok());
    }

    #[test]
    fn a_reader_on_another_thread_eventually_sees_every_count() {
        const COUNTS: u64 = 100_000;
        let slots = Cells::new(4).reserve(2);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let mut owned = slots.take(worker).unwrap();
                scope.spawn(move || (0..COUNTS).for_each(|_| owned.add(1, 1)));
            }
            let mut last = 0;
            while last < 4 * COUNTS {
                let now = slots.sum(1);
                assert!(now >= last, "a sum decreased from {last} to {now}");
                last = now;
                std::thread::yield_now();
            }
            assert_eq!(last, 4 * COUNTS);
        });
        assert_eq!(slots.sum(0), 0);
    }

    proptest! {
        /// Compares instruments of any sizes with plain numbers.
        #[test]
        fn instruments_do_not_overlap(sizes in prop::collection::vec(0..=MAX_INSTRUMENT_SLOTS, 1..12),
                                                adds in prop::collection::vec((any::<usize>(), 0..3_usize, any::<usize>(), any::<u64>()), 0..40)) {
            let cells = Cells::new(3);
            let instruments: Vec<SlotRange> = sizes.iter().map(|&size| cells.reserve(size)).collect();
            let mut owned: Vec<Vec<OwnedSlots>> = Vec::new();
            for slots in &instruments {
                owned.push((0..3).map(|worker| slots.take(worker).unwrap()).collect());
            }
            let mut expected: Vec<Vec<u64>> = sizes.iter().map(|&size| vec![0; size]).collect();
            for (instrument, worker, offset, n) in adds {
                let instrument = instrument % sizes.len();
                if sizes[instrument] > 0 {
                    let offset = offset % sizes[instrument];
                    owned[instrument][worker].add(offset, n);
                    expected[instrument][offset] = expected[instrument][offset].wrapping_add(n);
                }
            }
            for (slots, expected) in instruments.iter().zip(&expected) {
                let sums: Vec<u64> = (0..expected.len()).map(|offset| slots.sum(offset)).collect();
                prop_assert_eq!(&sums, expected);
            }
        }
    }
}
