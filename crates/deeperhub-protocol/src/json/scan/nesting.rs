//! Stacks of the open arrays and objects of a text.

/// A stack of the open arrays and objects, innermost on top.
pub(super) trait NestingStack {
    fn push(&mut self, is_object: bool);
    fn pop(&mut self);
    /// Returns `true` if the innermost level is an object. The result is unspecified if the stack
    /// is empty.
    fn is_object(&self) -> bool;
}

/// A stack of up to 128 levels with one bit for each: 1 for an object, 0 for an array. The lowest
/// bit is the innermost level.
impl NestingStack for u128 {
    #[inline]
    fn push(&mut self, is_object: bool) {
        *self = *self << 1 | Self::from(is_object);
    }

    #[inline]
    fn pop(&mut self) {
        *self >>= 1;
    }

    #[inline]
    fn is_object(&self) -> bool {
        *self & 1 == 1
    }
}

/// An unbounded stack for texts over the nesting limit. It needs one byte for each level, so at
/// most as many bytes as the text has.
#[derive(Default)]
pub(super) struct HeapNesting(Vec<bool>);

impl NestingStack for HeapNesting {
    fn push(&mut self, is_object: bool) {
        self.0.push(is_object);
    }

    fn pop(&mut self) {
        self.0.pop();
    }

    fn is_object(&self) -> bool {
        self.0.last().is_some_and(|&is_object| is_object)
    }
}
