"""Limits of a client, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Options:
    """Limits; times are in seconds."""

    #: Lower and upper limit of the random time before another attempt.
    min_delay: float = 0.5
    max_delay: float = 20.0
    #: Time in which an attempt must be open.
    connect_timeout: float = 10.0
    #: Time that the server has for a sign of life once it was asked for one.
    pong_timeout: float = 10.0
    #: Bytes that wait for the application, of each subscription.
    max_queue_bytes: int = 1 << 20
    #: Bytes that wait to be published.
    max_pending_bytes: int = 1 << 20
    #: Time in which `echo` and `history` must be answered.
    request_timeout: float = 30.0
    #: Time in which a publish must be answered once it was sent.
    publish_timeout: float = 120.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} must be positive, not {value!r}")
        if self.max_delay < self.min_delay:
            raise ValueError(f"max_delay {self.max_delay} is below min_delay {self.min_delay}")
