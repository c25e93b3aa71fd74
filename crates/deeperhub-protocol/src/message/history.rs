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
        let order = order.filter(is_not_null).map(|json| decode_string(json).unwrap_or_default());
        let (from, limit) = (from.filter(is_not_null), limit.filter(is_not_null));
        let arguments = Arguments::parse(from, limit, order.as_deref())?;
        Ok(arguments.of(Topic::parse(decode_topic(topic)?)?))
    }

    /// Creates a request for a topic from the texts of `from`, `limit` and `order`, for example of
    /// the query of a URL.
    ///
    /// # Errors
    ///
    /// Returns the error of a client message with these arguments.
    pub fn from_texts(
        topic: Topic<'a>,
        from: Option<&str>,
        limit: Option<&str>,
        order: Option<&str>,
    ) -> Result<Self, MessageError<'static>> {
        Ok(Arguments::parse(from, limit, order)?.of(topic))
    }
}

/// The optional arguments of a [`HistoryRequest`].
struct Arguments {
    from: Option<HistoryStart>,
    limit: u16,
    order: HistoryOrder,
}

impl Arguments {
    fn parse(
        from: Option<&str>,
        limit: Option<&str>,
        order: Option<&str>,
    ) -> Result<Self, MessageError<'static>> {
        let Some(from) = from.map_or(Some(None), |text| HistoryStart::parse(text).map(Some)) else {
            let text = "`from` must be an offset, or a negative 64-bit integer to count from the end";
            return Err(MessageError::invalid(text).at("from"));
        };
        let Some(limit) = limit.map_or(Some(HistoryRequest::DEFAULT_LIMIT), Self::parse_limit) else {
            return Err(MessageError::invalid("`limit` must be an integer from 1 to 1000").at("limit"));
        };
        let Some(order) = order.map_or(Some(HistoryOrder::Ascending), HistoryOrder::parse) else {
            return Err(MessageError::invalid("`order` must be `asc` or `desc`").at("order"));
        };
        Ok(Self { from, limit, order })
    }

    fn of(self, topic: Topic<'_>) -> HistoryRequest<'_> {
        let Self { from, limit, order } = self;
        HistoryRequest { topic, from, limit, order }
    }

    fn parse_limit(text: &str) -> Option<u16> {
        let limit = u16::try_from(parse_unsigned(text)?).ok()?;
        (1..=HistoryRequest::MAX_LIMIT).contains(&limit).then_some(limit)
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
    fn parse(text: &str) -> Option<Self> {
        let Some(digits) = text.strip_prefix('-') else { return parse_unsigned(text).map(Self::Offset) };
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

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|order| order.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        from: Option<&str>,
        limit: Option<&str>,
        order: Option<&str>,
    ) -> Result<(Option<HistoryStart>, u16, HistoryOrder), Option<&'static str>> {
        let topic = Topic::parse("a").unwrap();
        let request = HistoryRequest::from_texts(topic, from, limit, order).map_err(|error| error.field)?;
        Ok((request.from, request.limit, request.order))
    }

    #[test]
    fn texts_are_parsed_like_the_arguments_of_a_message() {
        use HistoryOrder::{Ascending, Descending};
        use HistoryStart::{FromEnd, Offset};
        assert_eq!(parse(None, None, None), Ok((None, 100, Ascending)));
        assert_eq!(parse(Some("0"), Some("1"), Some("asc")), Ok((Some(Offset(0)), 1, Ascending)));
        assert_eq!(parse(Some("-3"), Some("1000"), Some("desc")), Ok((Some(FromEnd(3)), 1000, Descending)));
        let max = u64::MAX.to_string();
        assert_eq!(parse(Some(&max), None, None), Ok((Some(Offset(u64::MAX)), 100, Ascending)));
        for from in ["", "-", "-0", "+1", "1.0", "1e3", " 1", "x", "null", "18446744073709551616", "--1"] {
            assert_eq!(parse(Some(from), None, None), Err(Some("from")), "{from:?}");
        }
        for limit in ["", "0", "1001", "-1", "65537", "1.5", "x", "null", "99999999999999999999"] {
            assert_eq!(parse(None, Some(limit), None), Err(Some("limit")), "{limit:?}");
        }
        for order in ["", "ASC", "up", "\"asc\"", "null"] {
            assert_eq!(parse(None, None, Some(order)), Err(Some("order")), "{order:?}");
        }
    }
}
