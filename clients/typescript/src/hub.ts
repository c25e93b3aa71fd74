import { Connection } from "./connection.js";
import type { ConnectionEvents } from "./connection.js";
import { Emitter } from "./emitter.js";
import { ClientError, fromServer } from "./error.js";
import type { ServerError } from "./error.js";
import type { Delivery, Frame } from "./frames.js";
import type {
  DirectMessage,
  History,
  HistoryOptions,
  Hub,
  HubEvents,
  HubOptions,
  HubStateEvent,
  Published,
  PublishOptions,
  SubscribeOptions,
  Subscription,
} from "./index.js";
import { watchPage } from "./page.js";
import { Positions } from "./positions.js";
import { Publisher } from "./publisher.js";
import { Requests } from "./requests.js";
import { withDefaults } from "./settings.js";
import { Subscriptions } from "./subscriptions.js";
import type { SubscriptionsOwner } from "./subscriptions.js";

/** Types of the server's own messages. All others come from backends. */
const OWN_TYPES =
  "welcome goodbye error echo pong subscribed unsubscribed published authenticated history presence " +
  "message gap position";

export class HubClient extends Emitter<HubEvents> implements Hub, ConnectionEvents, SubscriptionsOwner {
  readonly url: string;
  readonly _connection: Connection;
  readonly _maxQueueBytes: number;
  readonly _subscriptions: Subscriptions;
  readonly _publisher: Publisher;
  readonly _requests: Requests;
  readonly _positions: Positions;
  /** IDs of the last connections. Older publishes are answered or given up. */
  _ids: string[] = [];
  readonly _unwatch: () => void;
  _lastId = 0;
  _isScheduled = false;
  _closing: Promise<void> | undefined;

  constructor(url: string, options: HubOptions = {}) {
    super();
    const settings = withDefaults(options);
    this.url = url;
    this._maxQueueBytes = settings.maxQueueBytes;
    this._connection = new Connection(url, settings, options.token, this);
    this._positions = new Positions(url, options.storage, settings.clock);
    this._subscriptions = new Subscriptions(this._connection, this, this._positions);
    this._requests = new Requests(this._connection);
    this._publisher = new Publisher(this._connection, (topic, published) => {
      this._subscriptions._topics.get(topic)?._onPublished(published);
    });
    this._unwatch = watchPage(this._connection, () => this._positions._save());
    // Listeners that are added right after the constructor get the first state.
    queueMicrotask(() => this._connection._connect());
  }

  get state(): HubStateEvent {
    return this._connection._state;
  }

  get clientId(): string | undefined {
    return this._connection._welcome?.client_id;
  }

  subscribe<T = unknown>(topic: string, options: SubscribeOptions = {}): Subscription<T> {
    const handle = this._subscriptions._subscribe(topic, options);
    if (this._connection._isClosed) this._subscriptions._end(false);
    return handle as Subscription<T>;
  }

  publish(topic: string, message: unknown, options: PublishOptions = {}): Promise<Published> {
    this._schedule();
    return this._publisher._publish(this._nextId(), topic, message, options);
  }

  echo<T>(data: T): Promise<T> {
    return this._request("echo", data) as Promise<T>;
  }

  history<T = unknown>(topic: string, options: HistoryOptions = {}): Promise<History<T>> {
    return this._request("history", { topic, ...options }) as Promise<History<T>>;
  }

  close(): Promise<void> {
    const connection = this._connection;
    if (this._closing) return this._closing;
    this._closing = new Promise((resolve) => {
      const { clock, pongTimeout } = connection._settings;
      const timer = clock.setTimeout(resolve, pongTimeout) as never;
      connection._onClosed = () => {
        clock.clearTimeout(timer);
        resolve();
      };
      if (!connection._socket) connection._onClosed();
    });
    connection._close("closed");
    return this._closing;
  }

  _request(type: string, data: unknown): Promise<unknown> {
    this._schedule();
    return this._requests._request(this._nextId(), type, data);
  }

  async _readHistory(topic: string, count: number): Promise<Delivery[]> {
    const messages: Delivery[] = [];
    for (let from: number | undefined = -count; from !== undefined;) {
      const page: History = await this.history(topic, { from, limit: Math.min(count, 1000) });
      // A history that was emptied meanwhile goes on in another epoch.
      if (messages[0]?.epoch !== page.epoch) messages.length = 0;
      messages.push(...(page.messages as Delivery[]));
      from = page.next;
    }
    return messages;
  }

  _nextId(): number {
    return ++this._lastId;
  }

  /** Sends what waits, once the application's current call is over. */
  _schedule(): void {
    if (this._isScheduled) return;
    this._isScheduled = true;
    queueMicrotask(() => {
      this._isScheduled = false;
      if (this._connection._isOpen) this._flush();
    });
  }

  _flush(): void {
    this._subscriptions._flush();
    this._publisher._flush();
    this._requests._flush();
  }

  _onState(state: HubStateEvent): void {
    if (state.state === "closed") {
      this._unwatch();
      this._positions._save();
      this._subscriptions._end(!!this._closing);
      this._publisher._end();
      this._requests._end();
    }
    void this._emit("state", state);
  }

  _onOpen(): void {
    if (this.clientId) this._ids = [...this._ids.slice(-7), this.clientId];
    // The server's answers to these come before the replays that may have the same messages.
    this._publisher._flush(true);
    this._flush();
  }

  _onLost(): void {
    this._subscriptions._onLost();
    this._publisher._lost();
    this._requests._lost();
  }

  _onFrame(frame: Frame, text: string): void {
    const { type, id, data } = frame;
    const isKnown = this._subscriptions._receive(frame, text);
    if (isKnown || this._publisher._answer(frame) || this._requests._answer(frame)) return;
    if (type === "error" && id === undefined && data) this._onError(fromServer(data as ServerError));
    else if (!OWN_TYPES.split(" ").includes(type)) void this._emit("message", frame as DirectMessage);
  }

  /** Reports an error; to the console if nobody listens. */
  _onError(error: ClientError): void {
    if (this._of("error").length) void this._emit("error", error);
    else console.error(error);
  }

  _onListenerError(cause: unknown, event?: string): void {
    // A listener of errors that fails would be told of its own errors.
    if (event === "error") console.error(cause);
    else this._onError(new ClientError("handler_failed", `a handler failed: ${String(cause)}`, { cause }));
  }

  _onHole(topic: string): void {
    this._onError(
      new ClientError("hole", `a message of ${topic} is missing and nobody told; asking for it again`),
    );
  }

  _waitsForPublished(topic: string): boolean {
    return [...this._publisher._excluded.values()].includes(topic);
  }

  _isOwn(clientId: string): boolean {
    return this._ids.includes(clientId);
  }
}
