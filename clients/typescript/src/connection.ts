import { backoff } from "./backoff.js";
import { MAX_DELAY, Timer } from "./clock.js";
import { ClientError, fromServer } from "./error.js";
import type { ServerError } from "./error.js";
import type { Frame, Goodbye, Welcome } from "./frames.js";
import { defined } from "./frames.js";
import type { HubOptions, HubStateEvent, WebSocketLike } from "./index.js";
import { Liveness } from "./liveness.js";
import { isHidden, isOffline } from "./page.js";
import type { Settings } from "./settings.js";
import { Token, expiryOf } from "./token.js";

/** Whether this is the build for Node.js. The one for browsers is smaller. */
declare const NODE: boolean;

/** Time that a connection must be open to count as a good one. */
const GOOD_AFTER = 10_000;

/** Close code of a connection that ended without one. */
const NO_CODE = 1006;

/** Close code of a token that has expired. A token that is refused in the handshake is the same. */
const EXPIRED = 4001;

/** A WebSocket, maybe that of the package `ws`, which has listeners for refused handshakes. */
interface Socket extends WebSocketLike {
  on?(event: "unexpected-response", listener: (request: unknown, response: Refusal) => void): unknown;
}

interface Refusal {
  readonly statusCode: number;
  readonly headers: Readonly<Record<string, string | undefined>>;
}

/** Events of a connection for its hub. */
export interface ConnectionEvents {
  _onState(event: HubStateEvent): void;
  _onOpen(): void;
  _onFrame(frame: Frame, text: string): void;
  _onLost(): void;
  _onError(error: ClientError): void;
  _nextId(): number;
}

/** Connects, stays connected, and comes back. */
export class Connection {
  readonly _url: string;
  readonly _settings: Settings;
  readonly _hub: ConnectionEvents;
  readonly _token: Token;
  readonly _liveness: Liveness;
  /** Ends an attempt, or a wait. */
  readonly _timer: Timer;
  readonly _renewal: Timer;
  _state: HubStateEvent = { state: "connecting" };
  _socket: WebSocketLike | undefined;
  _welcome: Welcome | undefined;
  _goodbye: Goodbye | undefined;
  _openedAt: number | undefined;
  _welcomeAt = 0;
  /** Number of backoffs since the last good connection. */
  _attempts = 0;
  /** Counts connections, so that late answers of the token function are recognised. */
  _generation = 0;
  /** Whether the token of this connection was sent in the handshake. */
  _tokenSent = "";
  /** The unanswered `authenticate`, if not 0. */
  _authenticateId = 0;
  /** Whether a new token was tried at once after a refusal. */
  _triedAgain = false;
  /** Whether a new token was tried at once after close code 4001. */
  _cameBack = false;
  /** Number of renewals that failed in a row. */
  _failedRenewals = 0;
  /** Whether the attempt is due and waits for the page or the network alone. */
  _isDue = false;
  _onClosed: (() => void) | undefined;

  constructor(url: string, settings: Settings, token: HubOptions["token"], hub: ConnectionEvents) {
    const page = globalThis.location?.href;
    this._url = new URL(url, page).href.replace(/^http/, "ws");
    this._settings = settings;
    this._hub = hub;
    this._token = new Token(token);
    this._timer = new Timer(settings.clock);
    this._renewal = new Timer(settings.clock);
    this._liveness = new Liveness(
      settings.clock,
      settings.pongTimeout,
      () => this._send("ping"),
      () => this._end(NO_CODE, "no sign of life from the server", true),
    );
  }

  get _isOpen(): boolean {
    return this._state.state === "open";
  }

  get _isClosed(): boolean {
    return this._state.state === "closed";
  }

  _limit(name: string): number {
    return this._welcome?.limits?.[name] || Infinity;
  }

  _send(type: string, data?: unknown, id?: number): void {
    this._sendText(JSON.stringify({ type, id, data }));
  }

  _sendText(text: string): void {
    this._socket?.send(text);
  }

  _setState(state: HubStateEvent): void {
    this._state = state;
    this._hub._onState(state);
  }

  async _connect(): Promise<void> {
    if (this._isClosed) return;
    const generation = ++this._generation;
    this._isDue = false;
    this._welcome = this._goodbye = this._openedAt = undefined;
    this._tokenSent = "";
    this._authenticateId = 0;
    this._triedAgain = false;
    this._timer._set(this._settings.connectTimeout, () => this._end(NO_CODE, "no connection in time"));
    this._setState({ state: "connecting" });
    const token = await this._askForToken(generation);
    if (token === undefined) return;
    const protocols = ["deeperhub.v1.json"];
    if (token && this._token._isForHandshake(token)) {
      this._tokenSent = token;
      protocols.push("bearer." + token);
    }
    let socket: Socket;
    try {
      socket = new this._settings.WebSocket(this._url, protocols) as Socket;
    } catch (error) {
      return this._end(NO_CODE, String(error));
    }
    this._socket = socket;
    socket.onmessage = ({ data }) => {
      if (this._socket === socket) this._receive(data, token);
    };
    let failure: string | undefined;
    // `onclose` follows. Without a handler, `ws` would throw. Browsers have no message.
    socket.onerror = ({ message }) => (failure = message);
    socket.onclose = ({ code, reason }) => {
      if (this._socket === socket) this._end(code, reason || failure);
      else if (this._isClosed) this._onClosed?.();
    };
    // Only `ws` shows how a handshake was refused.
    if (NODE)
      socket.on?.("unexpected-response", (_request, { statusCode: code, headers }) => {
        if (this._socket !== socket) return;
        const seconds = Number(headers["retry-after"]);
        this._goodbye = {
          code: code === 401 ? EXPIRED : code,
          reason: `the handshake was answered with status ${code}`,
          reconnect: ![400, 403, 404].includes(code),
          retry_after_ms: seconds >= 0 ? 1000 * seconds : undefined,
        };
        this._end(code);
      });
  }

  /** Returns a token, or `undefined` if there is none to go on with. */
  async _askForToken(generation: number): Promise<string | undefined> {
    let token: string | undefined;
    try {
      token = await this._token._get();
    } catch (error) {
      if (generation !== this._generation) return undefined;
      this._hub._onError(error as ClientError);
      if (this._isOpen) this._retryRenewal();
      else this._end(NO_CODE, "token_failed");
    }
    return generation === this._generation ? token : undefined;
  }

  _receive(text: unknown, token: string): void {
    this._liveness._seen();
    let frame: Frame;
    try {
      frame = JSON.parse(text as string) as Frame;
      if (typeof frame.type !== "string") return;
    } catch {
      return;
    }
    const { type, data } = frame;
    if (type === "welcome" && !this._welcome) {
      this._welcome = data as Welcome;
      this._welcomeAt = this._settings.clock.now();
      if (token && !this._tokenSent) return this._authenticate(token);
      const expiry = expiryOf(token);
      if (expiry !== undefined) this._renewBefore(expiry);
      this._opened();
    } else if (type === "goodbye") {
      this._goodbye = data as Goodbye;
    } else if (this._authenticateId && frame.id === this._authenticateId) {
      this._authenticateId = 0;
      if (type === "error") void this._refused(data as ServerError);
      else this._accepted(data as { expires_at?: number });
    } else {
      this._hub._onFrame(frame, text as string);
    }
  }

  _opened(): void {
    if (this._isOpen) return;
    this._timer._clear();
    this._openedAt = this._settings.clock.now();
    const interval = this._welcome?.limits?.["ping_interval_ms"];
    this._liveness._start(interval ? 1.5 * interval : 25_000);
    this._setState({ state: "open" });
    if (this._isOpen) this._hub._onOpen();
  }

  _authenticate(token: string): void {
    this._authenticateId = this._hub._nextId();
    this._send("authenticate", { token }, this._authenticateId);
  }

  _accepted({ expires_at: expiry }: { expires_at?: number }): void {
    this._token._afterHandshake = this._triedAgain = false;
    this._failedRenewals = 0;
    if (expiry !== undefined) this._renewBefore(expiry * 1000);
    this._opened();
  }

  async _refused(error: ServerError): Promise<void> {
    const refused = error.code.startsWith("token_");
    if (refused && !this._token._isFunction) return this._close(error.code);
    if (refused && !this._triedAgain) {
      this._triedAgain = true;
      const token = await this._askForToken(this._generation);
      if (token !== undefined) this._authenticate(token);
      return;
    }
    this._triedAgain = false;
    this._hub._onError(fromServer(error));
    if (this._isOpen) this._retryRenewal();
    else this._end(NO_CODE, error.code);
  }

  /** Plans the renewal of a token that expires at a time of the server's clock. */
  _renewBefore(expiry: number): void {
    const { server_time: time } = this._welcome ?? {};
    if (!this._token._isFunction || time === undefined) return;
    const left = expiry - time - (this._settings.clock.now() - this._welcomeAt);
    this._renewal._set(Math.max(0.8 * left, this._settings.minDelay), () => this._renew());
  }

  _retryRenewal(): void {
    this._renewal._set(backoff(this._settings, ++this._failedRenewals), () => this._renew());
  }

  async _renew(): Promise<void> {
    const token = await this._askForToken(this._generation);
    if (token !== undefined && this._isOpen) this._authenticate(token);
  }

  /** Ends the connection or the attempt, and decides what follows. */
  _end(code: number, reason?: string, isLifeless = false): void {
    if (this._isClosed) return;
    const goodbye = this._goodbye;
    const wasOpen = this._isOpen;
    const isGood = wasOpen && this._settings.clock.now() - (this._openedAt ?? 0) >= GOOD_AFTER;
    if (isGood) {
      this._attempts = 0;
      this._cameBack = false;
    }
    if (goodbye) ({ code, reason } = goodbye);
    // Browsers do not see why a handshake failed: it may have been the token.
    if (this._tokenSent && !this._welcome && code === NO_CODE) this._token._afterHandshake = true;
    this._drop();
    if (wasOpen) this._hub._onLost();
    const comesBack = !goodbye || goodbye.reconnect;
    reason = reason || `closed with code ${code}`;
    if (code === EXPIRED) {
      if (!this._token._isFunction) return this._close(reason);
      const again = this._cameBack;
      this._cameBack = true;
      return again ? this._backOff(reason) : this._attempt(reason);
    }
    if (!comesBack || code === 1002 || code === 1007 || code === 1009 || (code >= 4000 && code < 4100)) {
      return this._close(reason);
    }
    if (goodbye?.retry_after_ms !== undefined) {
      this._attempts++;
      return this._wait(goodbye.retry_after_ms, reason);
    }
    if (isOffline()) return this._waitForNetwork();
    if (isGood && (isLifeless || (code >= 4200 && code < 4300))) return this._attempt(reason);
    this._backOff(reason);
  }

  /** Leaves the connection. Only code 1000 tells the server that the client will not come back. */
  _drop(code?: number): void {
    const socket = this._socket;
    this._socket = undefined;
    this._generation++;
    this._timer._clear();
    this._renewal._clear();
    this._liveness._timer._clear();
    socket?.close(code);
  }

  _backOff(reason: string): void {
    this._wait(backoff(this._settings, ++this._attempts), reason);
  }

  _wait(ms: number, reason: string): void {
    ms = Math.min(ms, MAX_DELAY);
    this._isDue = false;
    this._timer._set(ms, () => this._attempt(reason));
    this._setState({ state: "waiting", until: Date.now() + ms, reason });
  }

  _waitForNetwork(): void {
    this._isDue = true;
    this._setState({ state: "waiting", reason: "offline" });
  }

  /** Connects, as soon as the page is shown and the network is there. */
  _attempt(reason?: string): void {
    if (isHidden() || isOffline()) {
      this._isDue = true;
      if (this._state.state !== "waiting")
        this._setState(defined<HubStateEvent>({ state: "waiting", until: Date.now(), reason }));
    } else {
      void this._connect();
    }
  }

  /** Ends the hub. */
  _close(reason: string): void {
    if (this._isClosed) return;
    this._drop(1000);
    this._setState({ state: "closed", reason });
  }

  _onShown(): void {
    if (this._isOpen) this._liveness._ask(true);
    else if (this._isDue) this._attempt();
  }

  _onOffline(): void {
    if (this._state.state !== "connecting" && !this._isOpen) return;
    this._end(NO_CODE, "offline");
  }

  _onOnline(): void {
    if (this._state.state !== "waiting") return;
    // A time from the server holds; a backoff does not.
    if (this._isDue || this._goodbye?.retry_after_ms === undefined) {
      this._timer._clear();
      this._attempt();
    }
  }
}

export function closedError(): ClientError {
  return new ClientError("closed", "the hub is closed");
}
