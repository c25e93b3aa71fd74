//! Operations on clients: an action, and the clients that it concerns.

use std::borrow::Cow;

use deeperhub_protocol::{ClientId, RawJson, Subscription};

/// An action, and the clients that it concerns.
///
/// An operation keeps this shape wherever it goes; only the forms of its parts differ. `C` names a
/// client: by its ID, between nodes together with the number of a request
/// ([`ClientRequest`](crate::ClientRequest)). `M` is a message: JSON text, or an encoded frame.
///
/// ```
/// use deeperhub_cluster::{Action, Operation, Subscription, Target};
///
/// let topic = Subscription::parse("rooms.7").unwrap();
/// let target = Target::User("ada".into());
/// let operation: Operation = Operation::new(target, Action::Unsubscribe(topic));
/// assert_eq!(operation.target, Target::User("ada".into()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<'a, C = ClientId, M = RawJson<'a>> {
    /// The clients that the action concerns.
    pub target: Target<'a, C>,
    /// The action.
    pub action: Action<'a, M>,
}

/// Clients that an operation concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target<'a, C = ClientId> {
    /// One client.
    Client(C),
    /// All connections of a user.
    User(Cow<'a, str>),
    /// All clients.
    All,
}

/// Effect of an operation on each of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<'a, M = RawJson<'a>> {
    /// Sends a message, a JSON object with a string `type`. With [`Target::All`], clients without a
    /// required token are left out.
    Send(M),
    /// Ends the subscription to exactly this topic or pattern. A client that had it gets an
    /// `unsubscribed` message without an `id`.
    Unsubscribe(Subscription<'a>),
    /// Closes the connection with 4003.
    Disconnect,
}

impl<'a, C, M> Operation<'a, C, M> {
    /// Creates an operation.
    #[must_use]
    pub const fn new(target: Target<'a, C>, action: Action<'a, M>) -> Self {
        Self { target, action }
    }
}

impl<C> Target<'_, C> {
    /// Returns the target with another form of its client, if it names one.
    ///
    /// # Errors
    ///
    /// Returns the error of `convert`.
    pub fn try_map_client<D, E>(&self, convert: impl FnOnce(&C) -> Result<D, E>) -> Result<Target<'_, D>, E> {
        Ok(match self {
            Self::Client(client) => Target::Client(convert(client)?),
            Self::User(user) => Target::User(Cow::Borrowed(user)),
            Self::All => Target::All,
        })
    }

    /// Returns the target without borrowed text.
    #[must_use]
    pub fn into_owned(self) -> Target<'static, C> {
        match self {
            Self::Client(client) => Target::Client(client),
            Self::User(user) => Target::User(Cow::Owned(user.into_owned())),
            Self::All => Target::All,
        }
    }
}

impl<M> Action<'_, M> {
    /// Returns the action without borrowed text, and with another form of its message.
    #[must_use]
    pub fn to_owned_with<N>(&self, convert: impl FnOnce(&M) -> N) -> Action<'static, N> {
        match self {
            Self::Send(message) => Action::Send(convert(message)),
            Self::Unsubscribe(topic) => Action::Unsubscribe(topic.borrow().into_owned()),
            Self::Disconnect => Action::Disconnect,
        }
    }
}
