//! Topics that the bearer of a token may use.

use deeperhub_types::{Subscription, Topic};
use std::sync::Arc;

/// Maximum length of a user name in bytes.
pub const MAX_USER_BYTES: usize = 255;

/// Claims of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The user: the token's `sub`, 1 to [`MAX_USER_BYTES`] bytes without control characters.
    pub user: Arc<str>,
    /// Expiry: the token's `exp`, in seconds since 1970 (RFC 7519 section 4.1.4), rounded down. It
    /// may be arbitrarily far in the future.
    pub expires_at: u64,
    /// Topics that the user may use.
    pub grants: Grants,
}

/// Topics that a client may subscribe to and publish to. Cheap to clone. Default: all topics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// `None` allows all topics.
    lists: Option<Arc<Lists>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Lists {
    subscribe: Vec<Subscription<'static>>,
    publish: Vec<Subscription<'static>>,
    /// `None` allows the history of all topics in `subscribe`.
    history: Option<Vec<Subscription<'static>>>,
}

impl Grants {
    /// Returns grants for all topics, as `default()` does.
    #[must_use]
    pub fn unrestricted() -> Self {
        Self::default()
    }

    /// Returns grants for the listed topics and patterns. An empty list allows nothing.
    #[must_use]
    pub fn only(subscribe: Vec<Subscription<'static>>, publish: Vec<Subscription<'static>>) -> Self {
        Self { lists: Some(Arc::new(Lists { subscribe, publish, history: None })) }
    }

    /// Narrows the topics whose history the client may read to the listed ones. It must be allowed
    /// to subscribe to them as well.
    #[must_use]
    pub fn with_history(self, history: Vec<Subscription<'static>>) -> Self {
        // `>` matches all topics.
        let all = || Subscription::parse(">").into_iter().collect::<Vec<_>>();
        let (subscribe, publish) = match &self.lists {
            Some(lists) => (lists.subscribe.clone(), lists.publish.clone()),
            None => (all(), all()),
        };
        Self { lists: Some(Arc::new(Lists { subscribe, publish, history: Some(history) })) }
    }

    /// Returns `true` if all topics are allowed.
    #[must_use]
    pub fn is_unrestricted(&self) -> bool {
        self.lists.is_none()
    }

    /// Returns the topics and patterns that subscriptions must be covered by, or `None` if all
    /// subscriptions are allowed.
    #[must_use]
    pub fn subscribe(&self) -> Option<&[Subscription<'static>]> {
        self.lists.as_deref().map(|lists| &*lists.subscribe)
    }

    /// Returns the topics and patterns that allow publishing, or `None` if all topics are allowed.
    #[must_use]
    pub fn publish(&self) -> Option<&[Subscription<'static>]> {
        self.lists.as_deref().map(|lists| &*lists.publish)
    }

    /// Returns `true` if one grant covers the whole topic or pattern: `room.*` covers `room.a`, but
    /// not `room.>`. A pattern that only several grants cover together is not allowed.
    #[must_use]
    pub fn may_subscribe(&self, to: &Subscription<'_>) -> bool {
        self.subscribe().is_none_or(|grants| grants.iter().any(|grant| grant.covers(to)))
    }

    /// Returns `true` if the client may subscribe to a topic and read its history.
    #[must_use]
    pub fn may_read_history(&self, of: &Subscription<'_>) -> bool {
        let history = self.lists.as_deref().and_then(|lists| lists.history.as_deref());
        self.may_subscribe(of) && history.is_none_or(|grants| grants.iter().any(|grant| grant.covers(of)))
    }

    /// Returns `true` if a grant matches the topic.
    #[must_use]
    pub fn may_publish(&self, to: &Topic<'_>) -> bool {
        self.publish().is_none_or(|grants| grants.iter().any(|grant| grant.matches(to)))
    }
}

/// Returns `true` for a valid user name: 1 to [`MAX_USER_BYTES`] bytes, no control characters.
#[cfg(any(feature = "auth", feature = "tls"))]
pub(crate) fn is_user(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_USER_BYTES && !text.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriptions(texts: &[&'static str]) -> Vec<Subscription<'static>> {
        texts.iter().map(|&text| Subscription::parse(text).unwrap()).collect()
    }

    fn may_subscribe(grants: &Grants, text: &str) -> bool {
        grants.may_subscribe(&Subscription::parse(text).unwrap())
    }

    fn may_publish(grants: &Grants, text: &str) -> bool {
        grants.may_publish(&Topic::parse(text).unwrap())
    }

    #[test]
    fn without_lists_everything_is_allowed() {
        let grants = Grants::default();
        assert!(grants.is_unrestricted() && may_subscribe(&grants, ">") && may_publish(&grants, "a.b"));
        assert_eq!(grants, Grants::unrestricted());
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        let grants = Grants::only(subscriptions(&["news"]), Vec::new());
        assert!(!grants.is_unrestricted());
        assert!(may_subscribe(&grants, "news") && !may_publish(&grants, "news"));
        let grants = Grants::only(Vec::new(), subscriptions(&["news"]));
        assert!(!may_subscribe(&grants, "news") && may_publish(&grants, "news"));
    }

    #[test]
    fn a_list_of_history_narrows_the_subscriptions() {
        let may_read = |grants: &Grants, text| grants.may_read_history(&Subscription::parse(text).unwrap());
        let without = Grants::only(subscriptions(&["room.*"]), Vec::new());
        assert!(may_read(&without, "room.a") && !may_read(&without, "other"));
        assert!(may_read(&Grants::unrestricted(), "other"));
        let grants = without.with_history(subscriptions(&["room.a", "other"]));
        assert!(may_read(&grants, "room.a") && !may_read(&grants, "room.b") && !may_read(&grants, "other"));
        assert!(may_subscribe(&grants, "room.b") && !may_publish(&grants, "room.a"));
        let grants = Grants::unrestricted().with_history(Vec::new());
        assert!(may_subscribe(&grants, "a.b") && may_publish(&grants, "a.b") && !may_read(&grants, "a.b"));
    }

    #[test]
    fn a_pattern_needs_a_grant_that_covers_all_of_it() {
        let grants = Grants::only(subscriptions(&["room.*", "own"]), subscriptions(&["room.*", "own"]));
        for allowed in ["room.*", "room.a", "own"] {
            assert!(may_subscribe(&grants, allowed), "{allowed}");
        }
        for forbidden in ["room.>", "*.a", "room.a.b", "room", "other", ">", "*"] {
            assert!(!may_subscribe(&grants, forbidden), "{forbidden}");
        }
        assert!(may_publish(&grants, "room.a") && may_publish(&grants, "own"));
        assert!(!may_publish(&grants, "room.a.b") && !may_publish(&grants, "room"));
    }
}
