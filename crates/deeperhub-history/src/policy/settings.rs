//! Settings as an operator writes them, before they are checked together.

use super::error::excerpt;
use super::values::{Bytes, Time, whole};
use super::{Acknowledge, Delivery, Policy, RuleError};
use std::time::Duration;

/// Settings of a rule as written. A setting that is left out gets its default.
///
/// ```
/// use deeperhub_history::{Delivery, PolicySettings};
///
/// let mut settings = PolicySettings::default();
/// settings.set("history", "1000")?;
/// let error = settings.set("ttl", "8d").unwrap_err();
/// assert_eq!(error.to_string(), "`ttl` is `8d`; expected a duration from 1s to 168h, such as 10m");
///
/// let policy = settings.resolve()?;
/// assert_eq!(policy.delivery(), Delivery::Lossless);
/// assert_eq!(PolicySettings::default().history(1000).resolve()?, policy);
/// # Ok::<(), deeperhub_history::RuleError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicySettings {
    history: Option<u32>,
    history_bytes: Option<u32>,
    ttl: Option<Duration>,
    delivery: Option<DeliveryName>,
    keep: Option<u32>,
    every: Option<Duration>,
    acknowledge: Option<Acknowledge>,
    share: Option<u32>,
    max_streams: Option<u32>,
}

/// Name of a [`Delivery`], whose parameters are settings of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeliveryName {
    Lossless,
    DropOldest,
    Latest,
    Sample,
    Close,
}

/// Key of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    History,
    HistoryBytes,
    Ttl,
    Delivery,
    Keep,
    Every,
    Ack,
    Share,
    MaxStreams,
}

/// All keys, in the order of the documentation.
pub(super) const KEYS: [Key; 9] = [
    Key::History,
    Key::HistoryBytes,
    Key::Ttl,
    Key::Delivery,
    Key::Keep,
    Key::Every,
    Key::Ack,
    Key::Share,
    Key::MaxStreams,
];

impl Key {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::HistoryBytes => "history_bytes",
            Self::Ttl => "ttl",
            Self::Delivery => "delivery",
            Self::Keep => "keep",
            Self::Every => "every",
            Self::Ack => "ack",
            Self::Share => "share",
            Self::MaxStreams => "max_streams",
        }
    }

    /// Describes the values of the key.
    fn expected(self) -> String {
        let duration =
            |min, max, example| format!("a duration from {} to {}, such as {example}", Time(min), Time(max));
        let number = |min: u32, max: u32| format!("a whole number from {min} to {max}");
        match self {
            Self::History => number(0, Policy::MAX_HISTORY),
            Self::HistoryBytes => {
                format!("a size from 1 to {}, such as 64KiB or 4MiB", Bytes(Policy::MAX_HISTORY_BYTES))
            }
            Self::Ttl => duration(Policy::MIN_TTL, Policy::MAX_TTL, "10m"),
            Self::Delivery => "lossless, drop_oldest, latest, sample or close".to_owned(),
            Self::Keep => number(1, Policy::MAX_HISTORY),
            Self::Every => duration(Policy::MIN_EVERY, Policy::MAX_EVERY, "500ms"),
            Self::Ack => "memory or disk".to_owned(),
            Self::Share => number(1, Policy::MAX_SHARE),
            Self::MaxStreams => number(1, Policy::MAX_STREAMS),
        }
    }

    fn error(self, value: &str) -> RuleError {
        RuleError::Value { key: self.name(), value: excerpt(value), expected: self.expected() }
    }
}

impl PolicySettings {
    /// Returns the keys of all settings, in the order of the documentation of
    /// [`Rule`](crate::Rule).
    pub fn keys() -> impl ExactSizeIterator<Item = &'static str> {
        KEYS.into_iter().map(Key::name)
    }

    /// Sets `key` to the value that `value` describes, as in the text form of a rule.
    ///
    /// # Errors
    /// - [`RuleError::UnknownKey`] or [`RuleError::RepeatedKey`]
    /// - [`RuleError::Value`]: the value is not of the key's type, or outside of its bounds.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), RuleError> {
        let Some(key) = KEYS.into_iter().find(|known| known.name() == key) else {
            return Err(RuleError::UnknownKey { key: excerpt(key) });
        };
        let error = || key.error(value);
        match key {
            Key::History => put(&mut self.history, key, whole(value, 0, Policy::MAX_HISTORY)),
            Key::HistoryBytes => {
                put(&mut self.history_bytes, key, Bytes::parse(value, 1, Policy::MAX_HISTORY_BYTES))
            }
            Key::Ttl => put(&mut self.ttl, key, Time::parse(value, Policy::MIN_TTL, Policy::MAX_TTL)),
            Key::Delivery => put(&mut self.delivery, key, DeliveryName::parse(value)),
            Key::Keep => put(&mut self.keep, key, whole(value, 1, Policy::MAX_HISTORY)),
            Key::Every => put(&mut self.every, key, Time::parse(value, Policy::MIN_EVERY, Policy::MAX_EVERY)),
            Key::Ack => put(&mut self.acknowledge, key, Acknowledge::parse(value)),
            Key::Share => put(&mut self.share, key, whole(value, 1, Policy::MAX_SHARE)),
            Key::MaxStreams => put(&mut self.max_streams, key, whole(value, 1, Policy::MAX_STREAMS)),
        }
        .unwrap_or_else(|| Err(error()))
    }

    /// Sets the maximum number of messages of a topic; 0 keeps none. Default 0.
    #[must_use]
    pub const fn history(mut self, messages: u32) -> Self {
        self.history = Some(messages);
        self
    }

    /// Sets the maximum number of bytes of a topic. Default 4 MiB.
    #[must_use]
    pub const fn history_bytes(mut self, bytes: u32) -> Self {
        self.history_bytes = Some(bytes);
        self
    }

    /// Sets the maximum age of a message. Default ten minutes.
    #[must_use]
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets how a subscriber that is behind moves. Default [`Delivery::Lossless`] with a history,
    /// and [`Delivery::Close`] without.
    #[must_use]
    pub const fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = Some(match delivery {
            Delivery::Lossless => DeliveryName::Lossless,
            Delivery::DropOldest { keep } => {
                self.keep = Some(keep);
                DeliveryName::DropOldest
            }
            Delivery::Latest => DeliveryName::Latest,
            Delivery::Sample { every } => {
                self.every = Some(every);
                DeliveryName::Sample
            }
            Delivery::Close => DeliveryName::Close,
        });
        self
    }

    /// Sets when a publish is acknowledged. Default [`Acknowledge::Memory`].
    #[must_use]
    pub const fn acknowledge(mut self, acknowledge: Acknowledge) -> Self {
        self.acknowledge = Some(acknowledge);
        self
    }

    /// Sets the weight among the shares of all rules. Default 1.
    #[must_use]
    pub const fn share(mut self, weight: u32) -> Self {
        self.share = Some(weight);
        self
    }

    /// Sets the maximum number of topics with a stream. Default: the rule's share of the budget's
    /// streams.
    #[must_use]
    pub const fn max_streams(mut self, streams: u32) -> Self {
        self.max_streams = Some(streams);
        self
    }

    /// Checks the settings together and fills in the defaults. `keep` and `every` count only with
    /// the delivery that they belong to.
    ///
    /// # Errors
    /// - [`RuleError::Value`]: a value is outside of its bounds; `delivery` needs a history; `keep`
    ///   exceeds the history.
    /// - [`RuleError::NeedsHistory`]: a setting stands without `history`.
    pub fn resolve(&self) -> Result<Policy, RuleError> {
        self.check_bounds()?;
        let Some(history) = self.history.or(self.is_empty().then_some(0)) else {
            return Err(RuleError::NeedsHistory { key: self.first_key().name() });
        };
        let delivery = match self.delivery {
            None => Delivery::default_for(history),
            Some(DeliveryName::Lossless) => Delivery::Lossless,
            Some(DeliveryName::DropOldest) => {
                Delivery::DropOldest { keep: self.keep.unwrap_or(Policy::DEFAULT_KEEP.min(history)) }
            }
            Some(DeliveryName::Latest) => Delivery::Latest,
            Some(DeliveryName::Sample) => {
                Delivery::Sample { every: self.every.unwrap_or(Policy::DEFAULT_EVERY) }
            }
            Some(DeliveryName::Close) => Delivery::Close,
        };
        if history == 0 && delivery != Delivery::Close {
            return Err(RuleError::Value {
                key: Key::Delivery.name(),
                value: delivery.as_str().to_owned(),
                expected: "close, because `history` is 0; set `history` to 1 or more for others".to_owned(),
            });
        }
        if let Delivery::DropOldest { keep } = delivery
            && keep > history
        {
            return Err(RuleError::Value {
                key: Key::Keep.name(),
                value: keep.to_string(),
                expected: format!("at most `history`, which is {history}"),
            });
        }
        Ok(Policy {
            history,
            history_bytes: self.history_bytes.unwrap_or(Policy::DEFAULT_HISTORY_BYTES),
            ttl: self.ttl.unwrap_or(Policy::DEFAULT_TTL),
            delivery,
            acknowledge: self.acknowledge.unwrap_or(Acknowledge::Memory),
            share: self.share.unwrap_or(1),
            max_streams: self.max_streams,
        })
    }

    /// Checks the values that a program set without [`Self::set`].
    fn check_bounds(&self) -> Result<(), RuleError> {
        let numbers = [
            (Key::History, self.history, 0, Policy::MAX_HISTORY),
            (Key::HistoryBytes, self.history_bytes, 1, Policy::MAX_HISTORY_BYTES),
            (Key::Keep, self.keep, 1, Policy::MAX_HISTORY),
            (Key::Share, self.share, 1, Policy::MAX_SHARE),
            (Key::MaxStreams, self.max_streams, 1, Policy::MAX_STREAMS),
        ];
        for (key, value, min, max) in numbers {
            if let Some(value) = value.filter(|value| !(min..=max).contains(value)) {
                return Err(key.error(&value.to_string()));
            }
        }
        let durations = [
            (Key::Ttl, self.ttl, Policy::MIN_TTL, Policy::MAX_TTL),
            (Key::Every, self.every, Policy::MIN_EVERY, Policy::MAX_EVERY),
        ];
        for (key, value, min, max) in durations {
            let is_valid = |value: &Duration| {
                (min..=max).contains(value) && value.subsec_nanos().is_multiple_of(1_000_000)
            };
            if let Some(value) = value.filter(|value| !is_valid(value)) {
                return Err(key.error(&format!("{value:?}")));
            }
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the first key that is set, or `history`.
    fn first_key(&self) -> Key {
        let set = [
            (Key::HistoryBytes, self.history_bytes.is_some()),
            (Key::Ttl, self.ttl.is_some()),
            (Key::Delivery, self.delivery.is_some()),
            (Key::Keep, self.keep.is_some()),
            (Key::Every, self.every.is_some()),
            (Key::Ack, self.acknowledge.is_some()),
            (Key::Share, self.share.is_some()),
            (Key::MaxStreams, self.max_streams.is_some()),
        ];
        set.into_iter().find(|(_, is_set)| *is_set).map_or(Key::History, |(key, _)| key)
    }
}

/// Puts a parsed value into its field. Returns `None` if the value could not be parsed.
fn put<T>(field: &mut Option<T>, key: Key, value: Option<T>) -> Option<Result<(), RuleError>> {
    let value = value?;
    if field.is_some() {
        return Some(Err(RuleError::RepeatedKey { key: key.name() }));
    }
    *field = Some(value);
    Some(Ok(()))
}

impl DeliveryName {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "lossless" => Self::Lossless,
            "drop_oldest" => Self::DropOldest,
            "latest" => Self::Latest,
            "sample" => Self::Sample,
            "close" => Self::Close,
            _ => return None,
        })
    }
}

impl Acknowledge {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "memory" => Some(Self::Memory),
            "disk" => Some(Self::Disk),
            _ => None,
        }
    }
}
