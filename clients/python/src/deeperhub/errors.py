"""The error of this package."""

from __future__ import annotations


class HubError(Exception):
    """An error that the server answered with, or that the client found itself.

    `code` is the server's code, or one of the client's own: `closed`, `timeout`, `queue_full`,
    `message_too_large`, `token_failed`, `handler_failed`, `hole`.
    """

    def __init__(self, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        #: Seconds after which another try may succeed, if the server gave a time.
        self.retry_after = retry_after
