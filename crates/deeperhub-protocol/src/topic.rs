use std::borrow::Cow;
/// A valid topic name. A publish names one; see the crate's contract for the rules. Parsed once, valid by construction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic<'a>(Cow<'a, str>);
impl<'a> Topic<'a> {
    pub fn parse(text: impl Into<Cow<'a, str>>) -> Result<Self, TopicError> { let _ = text.into(); unimplemented!() }
    pub fn as_str(&self) -> &str { &self.0 }
    pub fn into_owned(self) -> Topic<'static> { Topic(Cow::Owned(self.0.into_owned())) }
    pub fn borrow(&self) -> Topic<'_> { Topic(Cow::Borrowed(&self.0)) }
}
/// A topic with at least one wildcard level: `*` one level, final `>` one or more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPattern<'a>(Cow<'a, str>);
impl<'a> TopicPattern<'a> {
    pub fn parse(text: impl Into<Cow<'a, str>>) -> Result<Self, TopicError> { let _ = text.into(); unimplemented!() }
    pub fn as_str(&self) -> &str { &self.0 }
    pub fn into_owned(self) -> TopicPattern<'static> { TopicPattern(Cow::Owned(self.0.into_owned())) }
    pub fn matches(&self, topic: &Topic<'_>) -> bool { let _ = topic; unimplemented!() }
    /// Whether everything that `other` matches is matched by this one too (grants).
    pub fn covers(&self, other: &Subscription<'_>) -> bool { let _ = other; unimplemented!() }
}
/// What a client subscribes to: one topic, or a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subscription<'a> { Topic(Topic<'a>), Pattern(TopicPattern<'a>) }
impl<'a> Subscription<'a> {
    pub fn parse(text: impl Into<Cow<'a, str>>) -> Result<Self, TopicError> { let _ = text.into(); unimplemented!() }
    pub fn as_str(&self) -> &str { match self { Self::Topic(t) => t.as_str(), Self::Pattern(p) => p.as_str() } }
    pub fn into_owned(self) -> Subscription<'static> { match self { Self::Topic(t) => Subscription::Topic(t.into_owned()), Self::Pattern(p) => Subscription::Pattern(p.into_owned()) } }
    pub fn matches(&self, topic: &Topic<'_>) -> bool { let _ = topic; unimplemented!() }
}
/// Why a text is no topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    #[error("topic is empty")] Empty,
}
