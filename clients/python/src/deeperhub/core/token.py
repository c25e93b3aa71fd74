"""Tokens: where they come from, when they are renewed, and what follows a refusal."""

from __future__ import annotations

import base64
import json
from enum import Enum


class TokenKind(Enum):
    """Source of tokens."""

    NONE = "none"
    STRING = "string"
    FUNCTION = "function"


#: Part of a token's life after which it is renewed.
RENEW_AT = 0.8


def expiry_of(token: str) -> float | None:
    """Returns the claim `exp` of a JWT in seconds since 1970, without a check of the signature."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    expiry = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expiry, bool) or not isinstance(expiry, int | float):
        return None
    return float(expiry)


class ServerClock:
    """The server's time, carried on by the monotonic clock since `welcome`."""

    def __init__(self, server_time_ms: int, now: float) -> None:
        self._seconds = server_time_ms / 1000
        self._now = now

    def until(self, server_seconds: float, now: float) -> float:
        """Returns the seconds from now to a time of the server."""
        return server_seconds - (self._seconds + now - self._now)


class RefusalLimit:
    """Allows one attempt at once after a refused token, and a backoff after further ones."""

    def __init__(self) -> None:
        self._spent = False

    def may_retry_at_once(self) -> bool:
        """Returns whether a new token may be sent at once. The second time in a row it may not."""
        spent, self._spent = self._spent, True
        return not spent

    def reset(self) -> None:
        """Forgets the refusals, since a token was accepted."""
        self._spent = False
