"""JSON of the protocol."""

from __future__ import annotations

import json
from typing import Any

from ..errors import HubError
from ..types import Message, Position

Data = dict[str, Any]

#: Errors after which the same message may succeed later.
RETRYABLE = frozenset({"unavailable", "rate_limited", "too_many_topics", "internal"})
#: The longest time that a server may tell a client to wait: 2^31 - 1 milliseconds.
MAX_WAIT = (2**31 - 1) / 1000


def encode(kind: str, data: Any = None, request: int | None = None) -> str:
    """Returns the text of a message."""
    envelope: Data = {"type": kind}
    if request is not None:
        envelope["id"] = request
    if data is not None or kind == "echo":
        envelope["data"] = data
    return json.dumps(envelope, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def size_of(text: str) -> int:
    """Returns the length in bytes, as the server counts it."""
    return len(text) if text.isascii() else len(text.encode())


def decode(raw: str) -> Data | None:
    """Returns the object, or `None` if the text is no JSON object with a type."""
    try:
        envelope = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(envelope, dict) or not isinstance(envelope.get("type"), str):
        return None
    return envelope


def data_of(envelope: Data) -> Data:
    """Returns the object `data` of a message, empty if it has none."""
    data = envelope.get("data")
    return data if isinstance(data, dict) else {}


def integer(value: object) -> int | None:
    """Returns the value if it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text(value: object) -> str | None:
    """Returns the value if it is a text."""
    return value if isinstance(value, str) else None


def position_of(data: Data) -> Position | None:
    """Returns the position in a message, if it has one."""
    epoch, offset = text(data.get("epoch")), integer(data.get("offset"))
    if epoch is None or offset is None:
        return None
    return Position(epoch, offset, integer(data.get("time")))


def message_of(data: Data) -> Message:
    """Returns the application's view of a delivery."""
    return Message(
        topic=data["topic"],
        message=data.get("message"),
        from_=text(data.get("from")),
        time=integer(data.get("time")),
        epoch=text(data.get("epoch")),
        offset=integer(data.get("offset")),
    )


def recover_of(position: Position) -> Data:
    """Returns a position as `subscribe` takes it."""
    recover: Data = {"epoch": position.epoch, "offset": position.offset}
    if position.time is not None:
        recover["time"] = position.time
    return recover


def seconds(milliseconds: object) -> float | None:
    """Returns a time that the server gave in milliseconds, bounded."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return min(max(milliseconds / 1000, 0.0), MAX_WAIT)


def error_of(data: Data) -> HubError:
    """Returns the error in the `data` of an `error`, or in an entry of `subscribed`."""
    return HubError(
        text(data.get("code")) or "internal",
        text(data.get("message")) or "the server gave no reason",
        retry_after=seconds(data.get("retry_after_ms")),
    )


def is_pattern(topic: str) -> bool:
    """Returns whether the text stands for many topics."""
    levels = topic.split(".")
    return "*" in levels or levels[-1] == ">"


def matches(pattern: str, topic: str) -> bool:
    """Returns whether a pattern covers a topic."""
    wanted, levels = pattern.split("."), topic.split(".")
    for index, level in enumerate(wanted):
        if level == ">" and index == len(wanted) - 1:
            return len(levels) > index
        if index >= len(levels) or level not in ("*", levels[index]):
            return False
    return len(wanted) == len(levels)
