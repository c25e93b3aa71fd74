//! The arguments of `history`.

use super::MessageError;
use super::envelope::{decode_string, is_not_null, parse_unsigned};
use super::subscribe::decode_topic;
use crate::Topic;

/// The arguments of `history`, which reads kept messages of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRequest<'a> {
    /// One topic, never a pattern.
    pub topic: Topic<'a>,
    /// The first message; `None` for the oldest or newest message, depending on the order.
    pub from: Option<HistoryStart>,
    /// Maximum number of messages, from 1 to [`Self::MAX_LIMIT`].
    pub limit: u16,
    /// The order of the messages.
    pub order: HistoryOrder,
}

impl<'a> HistoryRequest<'a> {
    /// The limit if the client gives none.
    pub const DEFAULT_LIMIT: u16 = 100;
    /// The highest limit.
    pub const MAX_LIMIT: u16 = 1000;

    /// Parses the values of `topic` (a JSON string), `from`, `limit` and `order`.
    pub(super) fn from_json(
        topic: &'a str,
        from: Option<&str>,
        limit: Option<&str>,
        order: Option<&str>,
    ) -> Result<Self, MessageError<'a>> {
        let Some(from) =
            from.filter(is_not_null).map_or(Some(None), |json| HistoryStart::from_json(json).map(Some))
        else {
            let text = "`from` must be an offset, or a negative 64-bit integer to count from the end";
            return Err(MessageError::invalid(text).at("from"));
        };
        let Some(limit) = limit.filter(is_not_null).map_or(Some(Self::DEFAULT_LIMIT), Self::parse_limit)
        else {
            return Err(MessageError::invalid("`limit` must be an integer from 1 to 1000").at("limit"));
        };
        let Some(order) =
            order.filter(is_not_null).map_or(Some(HistoryOrder::Ascending), HistoryOrder::from_json)
        else {
            return Err(MessageError::invalid("`order` must be `asc` or `desc`").at("order"));
        };
        let topic = Topic::parse(decode_topic(topic)?)?;
        Ok(Self { topic, from, limit, order })
    }

    fn parse_limit(json: &str) -> Option<u16> {
        let limit = u16::try_from(parse_unsigned(json)?).ok()?;
        (1..=Self::MAX_LIMIT).contains(&limit).then_some(limit)
    }
}

/// The first message of a [`HistoryRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HistoryStart {
    /// The message with this offset.
    Offset(u64),
    /// The message at this place from the end: 1 is the newest message. Sent as a negative number.
    FromEnd(u64),
}

impl HistoryStart {
    /// Parses an unsigned 64-bit integer, or a negative signed one. `-0` is neither.
    fn from_json(json: &str) -> Option<Self> {
        let Some(digits) = json.strip_prefix('-') else { return parse_unsigned(json).map(Self::Offset) };
        let number = parse_unsigned(digits)?;
        (1..=i64::MIN.unsigned_abs()).contains(&number).then_some(Self::FromEnd(number))
    }
}

/// The order of messages in the reply to a [`HistoryRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HistoryOrder {
    /// Oldest first.
    #[default]
    Ascending,
    /// Newest first.
    Descending,
}

impl HistoryOrder {
    /// All orders.
    pub const ALL: &'static [Self] = &[Self::Ascending, Self::Descending];

    /// Returns the value of `order`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ascending => "asc",
            Self::Descending => "desc",
        }
    }

    fn from_json(json: &str) -> Option<Self> {
        let text = decode_string(json)?;
        Self::ALL.iter().copied().find(|order| order.as_str() == text)
    }
}
