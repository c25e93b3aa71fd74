//! A list that needs no heap memory while it has at most one item.

/// A list that stores a single item inline and more items on the heap. For items of up to 16 bytes,
/// the list itself takes 24 bytes.
#[derive(Debug)]
pub(crate) enum InlineList<T> {
    One(T),
    /// Any number of items except one.
    Heap(Vec<T>),
}

impl<T> InlineList<T> {
    pub(crate) const fn new() -> Self {
        Self::Heap(Vec::new())
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Heap(items) => items,
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Self::One(item) => std::slice::from_mut(item),
            Self::Heap(items) => items,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Heap(items) => items.capacity() * size_of::<T>(),
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        *self = match std::mem::replace(self, Self::new()) {
            Self::One(first) => Self::Heap(vec![first, item]),
            Self::Heap(items) if items.is_empty() => Self::One(item),
            Self::Heap(mut items) => {
                items.push(item);
                Self::Heap(items)
            }
        };
    }

    /// Removes and returns the item at `index`. The last item moves to its position. Returns `None`
    /// if there is no such item.
    #[inline]
    pub(crate) fn swap_remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        let mut items = match std::mem::replace(self, Self::new()) {
            Self::One(item) => return Some(item),
            Self::Heap(items) => items,
        };
        let removed = items.swap_remove(index);
        *self = if items.len() == 1
            && let Some(last) = items.pop()
        {
            Self::One(last)
        } else {
            shrink(&mut items);
            Self::Heap(items)
        };
        Some(removed)
    }
}

/// Frees memory of a vector whose capacity is over 16 and less than a quarter used. Keeps room for
/// twice the items, so that adding and removing items takes constant time on average.
pub(crate) fn shrink<T>(items: &mut Vec<T>) {
    if items.capacity() > 16 && items.len() < items.capacity() / 4 {
        items.shrink_to(items.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_items_of_up_to_16_bytes_takes_24_bytes() {
        assert_eq!(size_of::<InlineList<u8>>(), 24);
        assert_eq!(size_of::<InlineList<(u64, u32, u32)>>(), 24);
    }

    #[test]
    fn an_inline_list_works_like_a_vec() {
        let mut list = InlineList::new();
        assert!(list.is_empty());
        for item in 0..100 {
            list.push(item);
        }
        assert_eq!(list.as_slice(), (0..100).collect::<Vec<_>>());
        assert_eq!(list.swap_remove(3), Some(3));
        assert_eq!(list.as_mut_slice()[3], 99);
        assert_eq!(list.swap_remove(99), None);
        for _ in 0..98 {
            assert!(list.swap_remove(0).is_some());
        }
        assert!(matches!(list, InlineList::One(_)));
        assert!(list.swap_remove(0).is_some());
        assert!(matches!(&list, InlineList::Heap(items) if items.capacity() == 0));
        assert_eq!(list.swap_remove(0), None);
    }
}
