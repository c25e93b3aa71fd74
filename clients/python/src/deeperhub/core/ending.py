"""What follows the end of a connection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: Seconds after which an open connection counts as good.
GOOD_AFTER = 10.0

FINAL_CODES = frozenset({1002, 1007, 1009})
FINAL_STATUS = frozenset({400, 403, 404})
TOKEN_REFUSED = 401
TOKEN_NEEDED = 4001


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended, or how an attempt failed."""

    reason: str
    #: Code of the close frame; `None` if none came.
    code: int | None = None
    #: HTTP status of a handshake that was refused.
    status: int | None = None
    #: Seconds from `Retry-After` of such a handshake.
    retry_after: float | None = None
    #: Whether the client gave up, because the server showed no life.
    without_life: bool = False


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The server's `goodbye`."""

    code: int | None
    reason: str | None
    reconnect: bool
    retry_after: float | None


class Next(Enum):
    """What the client does after the end of a connection."""

    CLOSE = "close"
    #: Ask for a token and connect at once, unless that was done just now.
    RENEW_TOKEN = "renew token"
    REPLACE_TOKEN = "replace token"
    WAIT = "wait"
    AT_ONCE = "at once"
    BACK_OFF = "back off"


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows, and why."""

    next: Next
    reason: str
    #: Seconds to wait, with `Next.WAIT`.
    delay: float = 0.0


def decide(ending: Ending, goodbye: Goodbye | None, open_for: float | None) -> Decision:
    """Decides what follows. The order of the lines is that of the page on clients' behaviour."""
    code = ending.code
    reason = ending.reason
    if goodbye is not None:
        # A cut may swallow the close frame that follows a goodbye.
        code = goodbye.code if code is None else code
        reason = goodbye.reason or reason
        if not goodbye.reconnect and goodbye.code != TOKEN_NEEDED:
            return Decision(Next.CLOSE, reason)
    if code == TOKEN_NEEDED:
        return Decision(Next.RENEW_TOKEN, reason)
    if ending.status == TOKEN_REFUSED:
        return Decision(Next.REPLACE_TOKEN, reason)
    if code is not None and (code in FINAL_CODES or 4000 <= code < 4100):
        return Decision(Next.CLOSE, reason)
    if ending.status in FINAL_STATUS:
        return Decision(Next.CLOSE, reason)
    retry_after = goodbye.retry_after if goodbye is not None else ending.retry_after
    if retry_after is not None:
        return Decision(Next.WAIT, reason, retry_after)
    if ending.without_life or (code is not None and 4200 <= code < 4300):
        is_good = open_for is not None and open_for >= GOOD_AFTER
        return Decision(Next.AT_ONCE if is_good else Next.BACK_OFF, reason)
    return Decision(Next.BACK_OFF, reason)
