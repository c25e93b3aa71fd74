"""Actions that the state machine asks its driver for."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import HubError
from ..types import HubState


@dataclass(frozen=True, slots=True)
class CallToken:
    """Call the token function and report the outcome with the same number."""

    call: int


@dataclass(frozen=True, slots=True)
class CancelToken:
    """Cancel a call of the token function; its outcome is no longer of interest."""


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """Open a connection. The token is left out of the representation, which may be logged."""

    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class SendText:
    """Send a text message on the open connection."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CloseSocket:
    """Close the connection; nothing that it still reports is of interest."""

    #: Whether to leave out the closing handshake, because the server shows no life.
    abort: bool


@dataclass(frozen=True, slots=True)
class ReportState:
    """Tell the application the state of the connection."""

    state: HubState


@dataclass(frozen=True, slots=True)
class ReportError:
    """Tell the application an error that belongs to no call of its own."""

    error: HubError


@dataclass(frozen=True, slots=True)
class ReportMessage:
    """Hand over a message that a backend sent to this client."""

    message: dict[str, object]


@dataclass(frozen=True, slots=True)
class SavePosition:
    """Save a text in the storage, or remove it if it is `None`."""

    topic: str
    text: str | None


Action = (
    CallToken
    | CancelToken
    | OpenSocket
    | SendText
    | CloseSocket
    | ReportState
    | ReportError
    | ReportMessage
    | SavePosition
)
