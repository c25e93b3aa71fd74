"""Values that applications receive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

#: A token, or a function that returns one; the function may be a coroutine function.
Token = str | Callable[[], str | Awaitable[str]]

HubStateName = Literal["connecting", "open", "waiting", "closed"]
SubscriptionStateName = Literal["subscribing", "live", "recovering", "ended"]


@dataclass(frozen=True, slots=True)
class HubState:
    """State of the connection."""

    state: HubStateName
    #: Why the last connection ended, with `waiting` and `closed`.
    reason: str | None = None
    #: Time of the next attempt on the clock of the event loop, with `waiting`.
    until: float | None = None


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """State of a subscription."""

    state: SubscriptionStateName
    #: With `live`: `False` if messages were missed since the last live time.
    recovered: bool | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Place of a message in its topic. The three values always stand together."""

    epoch: str
    offset: int
    time: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a topic."""

    topic: str
    #: The payload, as `json.loads` returns it.
    message: Any
    #: Client ID of the publisher; `None` if a backend published.
    from_: str | None = None
    #: Server time in milliseconds since 1970, on topics with history.
    time: int | None = None
    epoch: str | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages that will not come."""

    topic: str
    reason: str
    #: First and last offset that is missing, if they are known.
    from_: int | None = None
    to: int | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """The server's answer to a publish."""

    topic: str
    #: Subscriptions that the message matched on the publisher's node.
    subscribers: int
    #: Position of the message, on topics with history.
    epoch: str | None = None
    offset: int | None = None
    time: int | None = None
    #: Says why the message did not reach other nodes of a cluster.
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Kept messages of a topic."""

    topic: str
    messages: list[Message]
    #: Position of the newest message; `None` if the topic keeps no messages.
    epoch: str | None = None
    offset: int | None = None
    time: int | None = None
    #: The `start` of the next request, if there are more messages.
    next: int | None = None


class Storage(Protocol):
    """Keeps positions, so that a new process continues where the last one was."""

    def get(self, key: str) -> str | None:
        """Returns the text that was saved under the key."""

    def set(self, key: str, value: str) -> None:
        """Saves a text under the key."""

    def delete(self, key: str) -> None:
        """Removes the key, if it is there."""
