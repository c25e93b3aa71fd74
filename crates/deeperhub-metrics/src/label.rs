//! Labels with a fixed list of values.

use std::fmt;

/// A label with a fixed list of values, such as the type of a message. A value of the type selects
/// a counter of a [`CounterVec`](crate::CounterVec).
///
/// The macro [`labels!`](crate::labels!) declares enums that implement it. A type that already
/// lists the values can implement it in a wrapper.
pub trait Label: Copy + fmt::Debug + 'static {
    /// The label's name.
    const NAME: &'static str;

    /// All values, as in the text.
    const VALUES: &'static [&'static str];

    /// Returns the position in [`VALUES`](Self::VALUES).
    fn index(self) -> usize;

    /// Returns the value, as in the text.
    fn value(self) -> &'static str {
        Self::VALUES.get(self.index()).copied().unwrap_or_default()
    }
}

/// Declares enums that are [`Label`]s: the label's name in parentheses, and the text of each value,
/// which is its documentation, too.
///
/// ```
/// deeperhub_metrics::labels! {
///     /// Type of a message.
///     pub enum MessageType("type") { Text = "text", Binary = "binary" }
/// }
///
/// use deeperhub_metrics::Label;
/// assert_eq!((MessageType::NAME, MessageType::Binary.value()), ("type", "binary"));
/// ```
#[macro_export]
macro_rules! labels {
    ($(
        $(#[$attribute:meta])*
        $vis:vis enum $Label:ident($name:literal) {
            $( $(#[$value_attribute:meta])* $Value:ident = $value:literal ),+ $(,)?
        }
    )+) => {$(
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $Label {
            $( #[doc = concat!("`", $value, "`.")] $(#[$value_attribute])* $Value ),+
        }

        impl $crate::Label for $Label {
            const NAME: &'static str = $name;
            const VALUES: &'static [&'static str] = &[$($value),+];

            #[inline]
            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}
