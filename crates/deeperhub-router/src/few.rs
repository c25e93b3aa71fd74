//! A list that is mostly empty or has one item, and then needs no memory of its own.

/// A list of `T` in 24 bytes, where the first item of up to 16 bytes lies within.
#[derive(Debug)]
pub(crate) enum Few<T> {
    One(T),
    /// Any number but one.
    Other(Vec<T>),
}

impl<T> Few<T> {
    pub(crate) const fn new() -> Self {
        Self::Other(Vec::new())
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Other(items) => items,
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Self::One(item) => std::slice::from_mut(item),
            Self::Other(items) => items,
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
            Self::Other(items) => items.capacity() * size_of::<T>(),
        }
    }

    pub(crate) fn push(&mut self, item: T) {
        *self = match std::mem::replace(self, Self::new()) {
            Self::One(first) => Self::Other(vec![first, item]),
            Self::Other(items) if items.is_empty() => Self::One(item),
            Self::Other(mut items) => {
                items.push(item);
                Self::Other(items)
            }
        };
    }

    /// Removes the item at `index` and puts the last one in its place.
    pub(crate) fn swap_remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        match std::mem::replace(self, Self::new()) {
            Self::One(item) => Some(item),
            Self::Other(mut items) => {
                let item = items.swap_remove(index);
                match items.pop() {
                    Some(last) if items.is_empty() => *self = Self::One(last),
                    last => {
                        items.extend(last);
                        shrink(&mut items);
                        *self = Self::Other(items);
                    }
                }
                Some(item)
            }
        }
    }
}

/// Gives memory back when three quarters of it are unused; doubling from there on keeps the mean
/// cost of a change constant.
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
        assert_eq!(size_of::<Few<(u64, u32, u32)>>(), 24);
    }

    #[test]
    fn it_is_a_list() {
        let mut few = Few::new();
        assert!(few.is_empty());
        for item in 0..100 {
            few.push(item);
        }
        assert_eq!(few.as_slice(), (0..100).collect::<Vec<_>>());
        assert_eq!(few.swap_remove(3), Some(3));
        assert_eq!(few.as_mut_slice()[3], 99);
        assert_eq!(few.swap_remove(99), None);
        for _ in 0..98 {
            assert!(few.swap_remove(0).is_some());
        }
        assert!(matches!(few, Few::One(_)));
        assert!(few.swap_remove(0).is_some());
        assert!(matches!(&few, Few::Other(items) if items.capacity() == 0));
        assert_eq!(few.swap_remove(0), None);
    }
}
