//! A list that needs no heap memory while it has at most one item.

/// A list of `T` in 24 bytes. A single item of up to 16 bytes is stored inline.
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

    /// Removes the item at `index` and moves the last item to its position.
    pub(crate) fn swap_remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        match std::mem::replace(self, Self::new()) {
            Self::One(item) => Some(item),
            Self::Heap(mut items) => {
                let item = items.swap_remove(index);
                match items.pop() {
                    Some(last) if items.is_empty() => *self = Self::One(last),
                    last => {
                        items.extend(last);
                        shrink(&mut items);
                        *self = Self::Heap(items);
                    }
                }
                Some(item)
            }
        }
    }
}

/// Frees memory when three quarters of it are unused. It keeps room for twice the items, so that
/// the mean cost of a change stays constant.
pub(crate) fn shrink<T>(items: &mut Vec<T>) {
    if items.capacity() > 16 && items.len() < items.capacity() / 4 {
        items.shrink_to(items.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_item_of_16_bytes_costs_nothing_more() {
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
