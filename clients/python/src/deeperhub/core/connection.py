"""The connection: attempts, tokens, signs of life, and what follows its end."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from random import Random
from typing import Protocol

from ..errors import HubError
from ..types import HubState
from .actions import (
    Action,
    CallToken,
    CancelToken,
    CloseSocket,
    OpenSocket,
    ReportError,
    ReportState,
    SendText,
)
from .backoff import Backoff
from .ending import GOOD_AFTER, Ending, Goodbye, Next, decide
from .options import Options
from .renewal import Renewal
from .timers import Timers
from .token import RefusalLimit, ServerClock, TokenKind
from .wire import Data, data_of, encode, integer, seconds, text

#: Time without a sign of life before the client asks for one, if the server sends no pings.
SILENCE = 25.0
#: A timer that is this late says that the computer slept.
LATE = 1.0


class Phase(Enum):
    """Steps of an attempt, and what is between attempts."""

    IDLE = "idle"
    TOKEN = "token"
    HANDSHAKE = "handshake"
    WELCOME = "welcome"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"


class Listener(Protocol):
    """Gets told what becomes of the connection."""

    def on_open(self, now: float) -> None:
        """The connection is open."""

    def on_lost(self, now: float) -> None:
        """The connection that was open has ended."""

    def on_closed(self, reason: str, now: float) -> None:
        """Nothing is tried any more."""


class Connection:
    """All connections of a hub, one after the other."""

    #: Reason of a hub that was closed by `close`.
    CLOSED_BY_APPLICATION = "the application closed the hub"

    def __init__(
        self,
        options: Options,
        kind: TokenKind,
        token: str | None,
        random: Random,
        timers: Timers,
        act: Callable[[Action], None],
        next_id: Callable[[], int],
        listener: Listener,
    ) -> None:
        self._options = options
        self._kind = kind
        self._token = token
        self._timers = timers
        self._act = act
        self._listener = listener
        self._backoff = Backoff(options.min_delay, options.max_delay, random)
        self._renewal = Renewal(Backoff(options.min_delay, options.max_delay, random), timers, self, next_id)
        self._refused, self._expired = RefusalLimit(), RefusalLimit()
        self.phase = Phase.IDLE
        self.state = HubState("connecting")
        self._is_state_told = False
        self.max_message_bytes: int | None = None
        #: Client IDs of this and earlier connections, the latest last.
        self.client_ids: tuple[str, ...] = ()
        self._token_call = 0
        self._awaits_token = False
        self._goodbye: Goodbye | None = None
        self._opened_at: float | None = None
        self._silence = SILENCE
        self._last_activity = 0.0
        self._awaits_life = False

    @property
    def is_open(self) -> bool:
        """Returns whether messages can be sent."""
        return self.phase is Phase.OPEN

    @property
    def is_closed(self) -> bool:
        """Returns whether nothing is tried any more."""
        return self.phase is Phase.CLOSED

    def start(self, now: float) -> None:
        """Makes an attempt."""
        self._set_state(HubState("connecting"))
        self._timers.cancel("reconnect")
        self._timers.set("attempt", now + self._options.connect_timeout)
        self._goodbye, self._opened_at = None, None
        if self._kind is TokenKind.FUNCTION:
            self.phase = Phase.TOKEN
            self.call_token()
        else:
            self._open_socket(self._token)

    def close(self, now: float) -> None:
        """Ends everything, because the application said so."""
        if not self.is_closed:
            self._close(self.CLOSED_BY_APPLICATION, now)

    def call_token(self) -> None:
        """Asks for a token. The answer to an earlier call no longer counts."""
        self._token_call += 1
        self._awaits_token = True
        self._act(CallToken(self._token_call))

    def send(self, kind: str, data: object = None, request: int | None = None) -> None:
        """Sends a message."""
        self._act(SendText(encode(kind, data, request)))

    def report(self, error: HubError) -> None:
        """Tells the application an error."""
        self._act(ReportError(error))

    def on_token(self, call: int, token: str | None, now: float) -> None:
        """Takes a token from the application's function."""
        if call != self._token_call or not self._awaits_token:
            return
        self._awaits_token = False
        if self.phase is Phase.TOKEN:
            self._open_socket(token)
        elif self.is_open:
            self._renewal.on_token(token, now)

    def on_token_failed(self, call: int, message: str, now: float) -> None:
        """Notes that the application's function failed."""
        if call != self._token_call or not self._awaits_token:
            return
        self._awaits_token = False
        self.report(HubError("token_failed", message))
        if self.phase is Phase.TOKEN:
            self._wait(self._backoff.next(), "the token function failed", now)
        elif self.is_open:
            self._renewal.try_later(None, now)

    def on_socket_open(self, now: float) -> None:
        """Notes that the handshake succeeded."""
        if self.phase is Phase.HANDSHAKE:
            self.phase = Phase.WELCOME
            self._last_activity = now

    def on_activity(self, now: float) -> None:
        """Notes a sign of life."""
        self._last_activity = now
        self._awaits_life = False

    def on_welcome(self, data: Data, now: float) -> None:
        """Takes the first message of the server."""
        if self.phase is not Phase.WELCOME:
            return
        limits = data_of({"data": data.get("limits")})
        self.max_message_bytes = integer(limits.get("max_message_bytes"))
        interval = seconds(limits.get("ping_interval_ms")) or 0.0
        self._silence = 1.5 * interval if interval > 0 else SILENCE
        client_id = text(data.get("client_id"))
        if client_id is not None:
            self.client_ids = (*self.client_ids[-7:], client_id)
        self.phase = Phase.OPEN
        self._refused.reset()
        self._opened_at = self._last_activity = now
        self._timers.cancel("attempt")
        self._timers.set("good", now + GOOD_AFTER)
        self._timers.set("silence", now + self._silence)
        server_time = integer(data.get("server_time"))
        clock = None if server_time is None else ServerClock(server_time, now)
        self._renewal.on_open(clock, self._token if self._kind is TokenKind.FUNCTION else None, now)
        self._set_state(HubState("open"))
        self._listener.on_open(now)

    def on_goodbye(self, data: Data) -> None:
        """Remembers what the server said before it closes."""
        self._goodbye = Goodbye(
            integer(data.get("code")),
            text(data.get("reason")),
            data.get("reconnect") is not False,
            seconds(data.get("retry_after_ms")),
        )

    def on_authenticated(self, request: object, data: Data, now: float) -> None:
        """Takes the answer to a new token."""
        self._renewal.on_authenticated(request, data, now)

    def on_authenticate_error(self, request: object, error: HubError, now: float) -> bool:
        """Takes an error. Returns whether it belonged to a new token."""
        return self._renewal.on_error(request, error, now)

    def on_ended(self, ending: Ending, now: float) -> None:
        """Notes that the connection ended, or that the attempt failed."""
        if self.phase not in (Phase.HANDSHAKE, Phase.WELCOME, Phase.OPEN):
            return
        open_for = None if self._opened_at is None else now - self._opened_at
        decision = decide(ending, self._goodbye, open_for)
        self._leave(now)
        match decision.next:
            case Next.CLOSE:
                self._close(decision.reason, now)
            case Next.RENEW_TOKEN | Next.REPLACE_TOKEN if self._kind is not TokenKind.FUNCTION:
                self._close(decision.reason, now)
            case Next.RENEW_TOKEN | Next.REPLACE_TOKEN:
                limit = self._expired if decision.next is Next.RENEW_TOKEN else self._refused
                if limit.may_retry_at_once():
                    self.start(now)
                else:
                    self._wait(self._backoff.next(), decision.reason, now)
            case Next.AT_ONCE:
                self.start(now)
            case Next.WAIT:
                self._backoff.skip()
                self._wait(decision.delay, decision.reason, now)
            case Next.BACK_OFF:
                self._wait(self._backoff.next(), decision.reason, now)

    def on_timer(self, name: str, when: float, now: float) -> None:
        """Takes a deadline that has passed."""
        match name:
            case "attempt":
                self._give_up_attempt(now)
            case "reconnect":
                self.start(now)
            case "good":
                self._backoff.reset()
                self._expired.reset()
            case "silence":
                self._on_silence(when, now)
            case "pong":
                self._on_no_pong(when, now)
            case "renew":
                self._renewal.on_time(now)

    def _open_socket(self, token: str | None) -> None:
        self.phase = Phase.HANDSHAKE
        self._token = token
        self._act(OpenSocket(token))

    def _give_up_attempt(self, now: float) -> None:
        if self.phase is Phase.TOKEN:
            message = f"no token within {self._options.connect_timeout:g} s"
            self._act(CancelToken())
            self.on_token_failed(self._token_call, message, now)
        else:
            self._act(CloseSocket(abort=True))
            self.on_ended(Ending(f"no connection within {self._options.connect_timeout:g} s"), now)

    def _on_silence(self, when: float, now: float) -> None:
        due = self._last_activity + self._silence
        if due > now and now - when < LATE:
            self._timers.set("silence", due)
        else:
            self._ask_for_life(now)

    def _ask_for_life(self, now: float) -> None:
        self._awaits_life = True
        self.send("ping")
        self._timers.set("pong", now + self._options.pong_timeout)

    def _on_no_pong(self, when: float, now: float) -> None:
        if not self._awaits_life:
            self._timers.set("silence", self._last_activity + self._silence)
        elif now - when >= LATE:
            # The process stood still, so the server may have answered in time.
            self._ask_for_life(now)
        else:
            self._act(CloseSocket(abort=True))
            self.on_ended(Ending("the server showed no life", without_life=True), now)

    def _wait(self, delay: float, reason: str, now: float) -> None:
        self._leave(now)
        self.phase = Phase.WAITING
        self._timers.set("reconnect", now + delay)
        self._set_state(HubState("waiting", reason, now + delay))

    def _leave(self, now: float) -> None:
        """Ends what belongs to one connection."""
        was_open = self.is_open
        for name in ("attempt", "good", "silence", "pong", "renew"):
            self._timers.cancel(name)
        if self._awaits_token:
            self._awaits_token = False
            self._act(CancelToken())
        self._renewal.on_lost()
        self.phase = Phase.IDLE
        if was_open:
            self._listener.on_lost(now)

    def _close(self, reason: str, now: float) -> None:
        had_socket = self.phase in (Phase.HANDSHAKE, Phase.WELCOME, Phase.OPEN)
        self._leave(now)
        self.phase = Phase.CLOSED
        self._timers.cancel("reconnect")
        if had_socket:
            self._act(CloseSocket(abort=False))
        self._listener.on_closed(reason, now)
        self._set_state(HubState("closed", reason))

    def _set_state(self, state: HubState) -> None:
        if state != self.state or not self._is_state_told:
            self.state, self._is_state_told = state, True
            self._act(ReportState(state))
