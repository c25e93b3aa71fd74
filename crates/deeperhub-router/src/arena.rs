//! An arena: a table that gives each item a small number.

use crate::inline_list::shrink;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Items of one type with their numbers. An item keeps its number until it is removed.
///
/// A new item gets the lowest free number. After many removals, the highest numbers thus become
/// free, and so does the memory of their slots.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    items: Vec<Option<T>>,
    /// Free numbers. The heap may also contain numbers past the end of `items`, and duplicates.
    /// They are skipped.
    free: BinaryHeap<Reverse<u32>>,
    len: usize,
}

impl<T> Arena<T> {
    pub(crate) const fn new() -> Self {
        Self { items: Vec::new(), free: BinaryHeap::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, item: T) -> u32 {
        self.len += 1;
        while let Some(Reverse(number)) = self.free.pop() {
            if let Some(slot @ None) = self.items.get_mut(number as usize) {
                *slot = Some(item);
                return number;
            }
        }
        let number = u32::try_from(self.items.len()).expect("memory does not hold 2^32 items");
        self.items.push(Some(item));
        number
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let item = self.items.get_mut(number as usize)?.take()?;
        self.len -= 1;
        self.free.push(Reverse(number));
        while let Some(None) = self.items.last() {
            self.items.pop();
        }
        shrink(&mut self.items);
        // Discard numbers past the end of `items`, and duplicates.
        if self.free.len() > 2 * self.items.len() + 16 {
            let mut free: Vec<_> = std::mem::take(&mut self.free).into_vec();
            free.retain(|Reverse(number)| matches!(self.items.get(*number as usize), Some(None)));
            free.sort_unstable();
            free.dedup();
            free.shrink_to_fit();
            self.free = free.into();
        }
        Some(item)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.items.get(number as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.items.get_mut(number as usize)?.as_mut()
    }

    /// Returns the items whose numbers are among the `max_len` numbers from `start`. Also returns
    /// the number after these, if more slots follow.
    pub(crate) fn range(&self, start: usize, max_len: usize) -> (impl Iterator<Item = &T>, Option<usize>) {
        let rest = self.items.get(start..).unwrap_or_default();
        let slots = rest.get(..max_len).unwrap_or(rest);
        (slots.iter().flatten(), (slots.len() < rest.len()).then_some(start + slots.len()))
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        self.items.capacity() * size_of::<Option<T>>() + self.free.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_item_gets_the_lowest_free_number() {
        let mut arena = Arena::new();
        let numbers: Vec<_> = (0..10).map(|item| arena.insert(item)).collect();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
        assert_eq!((arena.remove(7), arena.remove(2), arena.remove(2)), (Some(7), Some(2), None));
        assert_eq!((arena.insert(20), arena.insert(21), arena.insert(22)), (2, 7, 10));
        assert_eq!((arena.get(7), arena.get(11), arena.len()), (Some(&21), None, 11));
    }

    #[test]
    fn memory_is_freed() {
        let mut arena = Arena::new();
        for round in 0..3 {
            let numbers: Vec<_> = (0..10_000).map(|item| arena.insert(item + round)).collect();
            for number in &numbers[5..] {
                assert!(arena.remove(*number).is_some());
            }
            assert!(arena.items.capacity() <= 32 && arena.free.len() <= 64, "{:?}", arena.free.len());
            for number in &numbers[..5] {
                assert!(arena.remove(*number).is_some());
            }
            assert_eq!((arena.len(), arena.items.len()), (0, 0));
        }
    }

    #[test]
    fn numbers_in_use_are_not_reused() {
        let mut arena = Arena::new();
        let mut used = std::collections::BTreeMap::new();
        let mut random = 1_u32;
        for step in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Waves: mostly growing, then mostly shrinking.
            if (random >> 16) % 8 < if step / 1_000 % 2 == 0 { 6 } else { 2 } {
                assert_eq!(used.insert(arena.insert(step), step), None);
            } else if let Some((&number, _)) = used.range(random % 512..).next().or(used.iter().next()) {
                assert_eq!(arena.remove(number), used.remove(&number));
            }
            assert_eq!(arena.len(), used.len());
        }
        assert!(used.iter().all(|(number, step)| arena.get(*number) == Some(step)));
    }
}
