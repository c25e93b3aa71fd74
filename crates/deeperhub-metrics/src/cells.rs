use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Slots of one block: 2 KiB, which holds the instruments of a usual worker in one piece.
const SLOTS: usize = 256;

/// Most slots that one instrument may take (a vector's labels, a histogram's buckets and its sum).
pub(crate) const MAX_SLOTS: usize = SLOTS;

/// Where instruments keep their numbers: for each worker a compact block that it alone writes.
///
/// Every worker's numbers stand side by side in memory and on cache lines of their own, so that a
/// worker that counts six things for a message touches one or two lines, and never a line that another
/// worker writes. Instruments are made over one `Cells` and share its blocks; a block that is full is
/// followed by another. Cheap to clone; the memory lives as long as an instrument or cell uses it.
#[derive(Debug, Clone)]
pub struct Cells {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    workers: usize,
    open: Mutex<Open>,
}

/// The blocks that are being filled, one per worker, and how far.
#[derive(Debug)]
struct Open {
    blocks: Arc<[Arc<Block>]>,
    used: usize,
}

impl Cells {
    /// Room for the cells of so many workers, at least one.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let workers = workers.max(1);
        let open = Mutex::new(Open { blocks: Block::for_workers(workers), used: 0 });
        Self { inner: Arc::new(Inner { workers, open }) }
    }

    /// How many workers have cells.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.inner.workers
    }

    /// Takes `slots` slots that follow each other, at the same place in every worker's block.
    ///
    /// # Panics
    ///
    /// With more than [`MAX_SLOTS`]: instruments check that when they are made.
    pub(crate) fn reserve(&self, slots: usize) -> Slots {
        assert!(slots <= MAX_SLOTS, "an instrument has at most {MAX_SLOTS} slots, not {slots}");
        // An instrument without numbers still needs a bit of its own that says whether it has an owner.
        let slots = slots.max(1);
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.used + slots > SLOTS {
            *open = Open { blocks: Block::for_workers(self.inner.workers), used: 0 };
        }
        let first = open.used;
        open.used += slots;
        Slots { blocks: Arc::clone(&open.blocks), first, len: slots }
    }
}

/// One worker's numbers. The alignment keeps the block away from what others write, also from the line
/// next to it, which some processors fetch along.
#[derive(Debug)]
#[repr(align(128))]
struct Block {
    slots: [AtomicU64; SLOTS],
    /// One bit per slot: an owner has it. Rarely touched, so behind the numbers.
    taken: [AtomicU64; SLOTS / 64],
}

impl Block {
    fn for_workers(workers: usize) -> Arc<[Arc<Self>]> {
        let new = || Self {
            slots: [const { AtomicU64::new(0) }; SLOTS],
            taken: [const { AtomicU64::new(0) }; SLOTS / 64],
        };
        (0..workers).map(|_| Arc::new(new())).collect()
    }

    /// The slot at `index`, which wraps: indexes come from [`Cells::reserve`] and are in range.
    #[inline]
    fn slot(&self, index: usize) -> &AtomicU64 {
        &self.slots[index % SLOTS]
    }

    fn taken(&self, index: usize) -> (&AtomicU64, u64) {
        (&self.taken[index / 64 % (SLOTS / 64)], 1 << (index % 64))
    }
}

/// An instrument's slots in all workers' blocks.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    blocks: Arc<[Arc<Block>]>,
    first: usize,
    len: usize,
}

impl Slots {
    /// The sum over all workers of the slot at `offset`, wrapping (which makes it right for signed
    /// numbers too).
    pub(crate) fn sum(&self, offset: usize) -> u64 {
        debug_assert!(offset < self.len);
        let slot = self.first + offset;
        let values = self.blocks.iter().map(|block| block.slot(slot).load(Ordering::Relaxed));
        values.fold(0, u64::wrapping_add)
    }

    /// Gives a worker's slots to their one owner.
    pub(crate) fn take(&self, worker: usize) -> Result<OwnedSlots, CellError> {
        let workers = self.blocks.len();
        let block = self.blocks.get(worker).ok_or(CellError::NoSuchWorker { worker, workers })?;
        let (bits, bit) = block.taken(self.first);
        // Pairs with the release in `OwnedSlots::drop`: a new owner goes on from the last one's numbers.
        if bits.fetch_or(bit, Ordering::Acquire) & bit != 0 {
            return Err(CellError::Taken { worker });
        }
        Ok(OwnedSlots { block: Arc::clone(block), first: self.first, len: self.len })
    }
}

/// One worker's slots of one instrument, with the only right to write them.
#[derive(Debug)]
pub(crate) struct OwnedSlots {
    block: Arc<Block>,
    first: usize,
    len: usize,
}

impl OwnedSlots {
    /// Adds to a slot: a load and a store, since nobody else writes it.
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
        let (bits, bit) = self.block.taken(self.first);
        bits.fetch_and(!bit, Ordering::Release);
    }
}

/// Why a worker's cell is not given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CellError {
    /// The cells were made for fewer workers: the caller's fault.
    #[error("worker {worker} has no cell, there are {workers} workers")]
    NoSuchWorker {
        /// The worker that was asked for, counted from 0.
        worker: usize,
        /// How many there are.
        workers: usize,
    },
    /// Another handle of this cell is alive. A worker that replaces another asks again when the
    /// other's handles are dropped, and goes on with its count.
    #[error("the cell of worker {worker} is in use")]
    Taken {
        /// The worker that was asked for.
        worker: usize,
    },
}
