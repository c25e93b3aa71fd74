//! Kinds of events, and filters for them.

use std::error::Error;
use std::fmt;

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EventKind {
    /// `websocket_connected`: a client completed its handshake.
    Connected,
    /// `websocket_disconnected`: a connection ended.
    Disconnected,
    /// `websocket_message_received`: a client sent a valid message.
    MessageReceived,
    /// `websocket_message_sent`: a reply or a delivery was sent to a client.
    MessageSent,
    /// `websocket_binary_received`: a client sent a binary message.
    BinaryReceived,
    /// `websocket_error`: a message was answered with an error, or a connection failed.
    Error,
}

impl EventKind {
    /// All kinds, in the order of the enum.
    pub const ALL: &'static [Self] = &[
        Self::Connected,
        Self::Disconnected,
        Self::MessageReceived,
        Self::MessageSent,
        Self::BinaryReceived,
        Self::Error,
    ];

    /// Returns the public name, such as `websocket_connected`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "websocket_connected",
            Self::Disconnected => "websocket_disconnected",
            Self::MessageReceived => "websocket_message_received",
            Self::MessageSent => "websocket_message_sent",
            Self::BinaryReceived => "websocket_binary_received",
            Self::Error => "websocket_error",
        }
    }

    /// Returns the kind with the given name, or `None` if the name is unknown.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Returns the kind's bit in an [`EventFilter`].
    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The set of [`EventKind`]s that an observer receives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EventFilter(u32);

impl EventFilter {
    /// Returns a filter for all kinds.
    #[must_use]
    pub const fn all() -> Self {
        let (mut set, mut index) = (Self::none(), 0);
        while index < EventKind::ALL.len() {
            set = set.with(EventKind::ALL[index]);
            index += 1;
        }
        set
    }

    /// Returns a filter without kinds, like `default()`.
    #[must_use]
    pub const fn none() -> Self {
        Self(0)
    }

    /// Adds `kind` to the filter.
    #[must_use]
    pub const fn with(self, kind: EventKind) -> Self {
        Self(self.0 | kind.bit())
    }

    /// Returns `true` if the filter includes `kind`.
    #[must_use]
    pub const fn contains(self, kind: EventKind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// Parses names that are separated by commas, with optional spaces around them.
    ///
    /// # Errors
    ///
    /// Returns [`UnknownEvent`] with the first unknown name. An empty name is unknown too.
    pub fn parse(names: &str) -> Result<Self, UnknownEvent> {
        let mut filter = Self::none();
        for name in names.split(',') {
            let name = name.trim_matches(' ');
            let kind = EventKind::from_name(name).ok_or_else(|| UnknownEvent { name: name.to_owned() })?;
            filter = filter.with(kind);
        }
        Ok(filter)
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// Returns the filter with these [`bits`](Self::bits).
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for EventFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(EventKind::ALL.iter().filter(|&&kind| self.contains(kind))).finish()
    }
}

/// Error for a list of event names that contains an unknown name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownEvent {
    name: String,
}

impl UnknownEvent {
    /// Returns the unknown name, without spaces around it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for UnknownEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "unknown event {:?}; known events are ", self.name)?;
        for (index, kind) in EventKind::ALL.iter().enumerate() {
            formatter.write_str(if index == 0 { "" } else { ", " })?;
            formatter.write_str(kind.name())?;
        }
        Ok(())
    }
}

impl Error for UnknownEvent {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kinds_are_found_only_by_their_exact_name() {
        for &kind in EventKind::ALL {
            assert_eq!(EventKind::from_name(kind.name()), Some(kind));
            assert_eq!(EventKind::from_name(&kind.name().to_uppercase()), None);
        }
        assert_eq!(EventKind::from_name("connected"), None);
    }

    #[test]
    fn names_are_separated_by_commas() {
        let set = EventFilter::parse("websocket_error, websocket_connected").unwrap();
        assert_eq!(set, EventFilter::none().with(EventKind::Connected).with(EventKind::Error));
        assert_eq!(format!("{set:?}"), "{Connected, Error}");
    }

    #[test]
    fn the_error_has_the_first_unknown_name_and_all_known_names() {
        let error = EventFilter::parse("websocket_error,nothing,what").unwrap_err();
        assert_eq!(error.name(), "nothing");
        let text = error.to_string();
        assert!(EventKind::ALL.iter().all(|kind| text.contains(kind.name())), "{text}");
        for empty in ["", ",", "websocket_error,"] {
            assert_eq!(
                EventFilter::parse(empty).map_err(|error| error.name),
                Err(String::new()),
                "{empty:?}"
            );
        }
    }

    #[test]
    fn all_contains_every_kind_and_none_contains_no_kind() {
        for &kind in EventKind::ALL {
            assert!(EventFilter::all().contains(kind));
            assert!(!EventFilter::none().contains(kind));
        }
    }

    proptest! {
        #[test]
        fn any_list_of_names_is_parsed(wanted in proptest::collection::vec(0..6_usize, 1..10)) {
            let kinds: Vec<EventKind> = wanted.iter().map(|&index| EventKind::ALL[index]).collect();
            let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            let set = EventFilter::parse(&names.join(",")).unwrap();
            for &kind in EventKind::ALL {
                prop_assert_eq!(set.contains(kind), kinds.contains(&kind));
            }
        }

        #[test]
        fn any_text_is_parsed_or_rejected(text in "[a-z_, ]{0,40}|\\PC{0,20}") {
            if let Err(error) = EventFilter::parse(&text) {
                prop_assert!(text.contains(error.name()));
                prop_assert_eq!(EventKind::from_name(error.name()), None);
            }
        }
    }
}
