//! The arguments of `subscribe`.

use std::borrow::Cow;

use super::MessageError;
use super::envelope::{Members, decode_string, is_not_null, parse_flag, parse_unsigned};
use crate::json::Elements;
use crate::{Epoch, ErrorCode, RawJson, Subscription};

/// A position from which a client continues a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recover {
    /// The epoch; `None` if the text is not the epoch of any stream.
    pub epoch: Option<Epoch>,
    /// The offset of the last message that the client has processed.
    pub offset: u64,
    /// The time of the position in milliseconds since the Unix epoch, if the client gives it.
    pub time: Option<u64>,
    /// If `true` and the position is not recoverable, the client gets all messages that are kept.
    pub partial: bool,
}

impl Recover {
    /// Maximum length of an epoch in bytes of UTF-8. A text that is not an [`Epoch`] matches no
    /// stream, but it is not an error: it can come from another server.
    pub const MAX_EPOCH_BYTES: usize = 64;

    fn from_json(json: &str) -> Result<Self, MessageError<'_>> {
        let Some(members) = Members::find(json, ["epoch", "offset", "time", "partial"]) else {
            let text = "`recover` must be a position: an object with `epoch` and `offset`";
            return Err(MessageError::invalid(text).at("recover"));
        };
        let epoch = members.unique_value(0)?.and_then(decode_string);
        let Some(epoch) = epoch.filter(|text| (1..=Self::MAX_EPOCH_BYTES).contains(&text.len())) else {
            let text = "`epoch` of `recover` must be a string of 1 to 64 bytes";
            return Err(MessageError::invalid(text).at("epoch"));
        };
        let Some(offset) = members.unique_value(1)?.and_then(parse_unsigned) else {
            let text = "`offset` of `recover` must be an unsigned 64-bit integer";
            return Err(MessageError::invalid(text).at("offset"));
        };
        let time = match members.unique_value(2)?.filter(is_not_null) {
            None => None,
            Some(json) => Some(parse_unsigned(json).ok_or_else(|| {
                MessageError::invalid("`time` of `recover` must be an unsigned 64-bit integer").at("time")
            })?),
        };
        let Some(partial) = parse_flag(members.unique_value(3)?) else {
            let text = "`partial` of `recover` must be `true` or `false`";
            return Err(MessageError::invalid(text).at("partial"));
        };
        Ok(Self { epoch: Epoch::parse(&epoch), offset, time, partial })
    }
}

/// The arguments of `subscribe` for one topic or pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeRequest<'a> {
    /// The topic or pattern in `topic`.
    pub subscription: Subscription<'a>,
    /// The position from which to continue.
    pub recover: Option<Recover>,
    /// Number of kept messages to deliver first if there is no position, or if recovery fails.
    pub history: u64,
}

impl<'a> SubscribeRequest<'a> {
    /// Parses the values of `topic` (a JSON string), `recover` and `history`.
    ///
    /// All keys are checked before the topic's syntax, so `invalid_message` precedes
    /// `invalid_topic`.
    #[inline]
    pub(super) fn from_json(
        topic: &'a str,
        recover: Option<&'a str>,
        history: Option<&'a str>,
    ) -> Result<Self, MessageError<'a>> {
        let (recover, history) = match (recover, history) {
            (None, None) => (None, 0),
            (recover, history) => Self::stream_options(recover, history)?,
        };
        let subscription = Subscription::parse(decode_topic(topic)?)?;
        Ok(Self { subscription, recover, history })
    }

    #[inline(never)]
    fn stream_options(
        recover: Option<&'a str>,
        history: Option<&'a str>,
    ) -> Result<(Option<Recover>, u64), MessageError<'a>> {
        let recover = recover.filter(is_not_null).map(Recover::from_json).transpose()?;
        let Some(history) = history.filter(is_not_null).map_or(Some(0), parse_unsigned) else {
            let text = "`history` must be an unsigned 64-bit integer";
            return Err(MessageError::invalid(text).at("history"));
        };
        Ok((recover, history))
    }
}

/// The list in `topics` of a `subscribe`.
///
/// Every entry is an object with a string `topic`. Its other keys are checked when the entry is
/// read, so an invalid entry does not affect the others. The list borrows the text of the message
/// and allocates nothing. The message's length bounds its number of entries, which the caller
/// compares with its own limit.
///
/// ```
/// use deeperhub_protocol::message::{ClientMessage, Command};
///
/// let text = r#"{"type":"subscribe","data":{"topics":[{"topic":"a"},{"topic":"b..c"}]}}"#;
/// let Command::SubscribeList { topics } = ClientMessage::parse(text)?.command else { panic!() };
/// let results: Vec<_> = topics.entries().map(|entry| entry.request.is_ok()).collect();
/// assert_eq!((topics.len(), results), (2, vec![true, false]));
/// # Ok::<(), deeperhub_protocol::MessageError<'_>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeList<'a> {
    array: &'a str,
    len: usize,
}

/// The keys of an entry.
const ENTRY_KEYS: [&str; 3] = ["topic", "recover", "history"];

impl<'a> SubscribeList<'a> {
    /// Returns the list in a valid JSON value. Returns `None` if it is not an array of objects, or
    /// if an object does not have exactly one `topic` that is a string.
    pub(super) fn from_json(json: &'a str) -> Option<Self> {
        let mut len = 0;
        for element in Elements::new(json)? {
            let members = Members::find(element, ["topic"])?;
            members.unique_value(0).ok().flatten().filter(|topic| topic.starts_with('"'))?;
            len += 1;
        }
        Some(Self { array: json, len })
    }

    /// Returns the number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` if the list has no entries.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the entries in the order of the list.
    #[must_use]
    pub fn entries(&self) -> SubscribeListEntries<'a> {
        SubscribeListEntries(Elements::new(self.array))
    }
}

/// Iterator over the entries of a [`SubscribeList`].
#[derive(Debug)]
pub struct SubscribeListEntries<'a>(Option<Elements<'a>>);

impl<'a> Iterator for SubscribeListEntries<'a> {
    type Item = SubscribeListEntry<'a>;

    fn next(&mut self) -> Option<SubscribeListEntry<'a>> {
        let members = Members::find(self.0.as_mut()?.next()?, ENTRY_KEYS)?;
        let topic = members.unique_value(0).ok().flatten()?;
        let values = members.unique_value(1).and_then(|recover| Ok((recover, members.unique_value(2)?)));
        let request =
            values.and_then(|(recover, history)| SubscribeRequest::from_json(topic, recover, history));
        Some(SubscribeListEntry { topic: RawJson::scanned(topic), request })
    }
}

/// One entry of a [`SubscribeList`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeListEntry<'a> {
    /// The topic or pattern as received, a JSON string, for the reply.
    pub topic: RawJson<'a>,
    /// The arguments of the entry, or the error that it is answered with.
    pub request: Result<SubscribeRequest<'a>, MessageError<'a>>,
}

/// Decodes the JSON string of a topic or pattern, without checking its syntax.
pub(super) fn decode_topic(json: &str) -> Result<Cow<'_, str>, MessageError<'_>> {
    decode_string(json).ok_or_else(|| MessageError {
        code: ErrorCode::InvalidTopic,
        ..MessageError::invalid("topic contains an unpaired surrogate; remove it").at("topic")
    })
}
