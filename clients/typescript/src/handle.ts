import type { ClientError } from "./error.js";
import { Emitter } from "./emitter.js";
import type { Delivery } from "./frames.js";
import { byteLength, positionOf } from "./frames.js";
import type {
  Gap,
  Message,
  Position,
  Presence,
  SubscribeOptions,
  Subscription,
  SubscriptionEvents,
  SubscriptionStateEvent,
} from "./index.js";
import type { Topic } from "./topic.js";

/** The name of an event, what its listeners get, and the position after it. */
type Item = { _bytes: number; _position?: Position | undefined } & (
  | { _name: "message"; _event: Message }
  | { _name: "gap"; _event: Gap }
  | { _name: "state"; _event: SubscriptionStateEvent }
  | { _name: "presence"; _event: Presence }
);

/** The part of a hub that a handle needs. */
export interface HandleOwner {
  readonly _maxQueueBytes: number;
  _onListenerError(error: unknown): void;
  _onError(error: ClientError): void;
  _onPosition(handle: Handle): void;
  _onUnsubscribe(handle: Handle): void;
}

/** One subscription of the application, with its queue. */
export class Handle extends Emitter<SubscriptionEvents> implements Subscription {
  readonly topic: string;
  state: SubscriptionStateEvent = { state: "subscribing" };
  readonly _owner: HandleOwner;
  readonly _options: SubscribeOptions;
  _topic: Topic;
  _ready: Promise<void> | undefined;
  _resolve: (() => void) | undefined;
  _reject: ((error: ClientError) => void) | undefined;
  _settled: ClientError | true | undefined;
  _queue: Item[] = [];
  _queuedBytes = 0;
  /** Whether messages are dropped: from when the queue is full until half of it is free. */
  _isFull = false;
  /** Position of the last event in the queue, or before it. */
  _position: Position | undefined;
  /** Position of the last event that the application has processed. */
  _processed: Position | undefined;
  /** Calls that wait until history has been read, with the epochs of their positions. */
  _held: [() => void, string | undefined][] | undefined;
  _isPumping = false;
  _isOver = false;
  _iterators: Set<() => void> | undefined;

  constructor(owner: HandleOwner, topic: Topic, options: SubscribeOptions) {
    super();
    this.topic = topic._name;
    this._owner = owner;
    this._options = options;
    this._topic = topic;
  }

  get ready(): Promise<void> {
    if (!this._ready) {
      const settled = this._settled;
      this._ready = new Promise((resolve, reject) => {
        this._resolve = resolve;
        this._reject = reject;
        if (settled) settled === true ? resolve() : reject(settled);
      });
      this._ready.catch(() => {});
    }
    return this._ready;
  }

  _settle(error?: ClientError): void {
    if (this._settled) return;
    this._settled = error ?? true;
    if (error) this._reject?.(error);
    else this._resolve?.();
    this._resolve = this._reject = undefined;
  }

  override on<K extends keyof SubscriptionEvents>(
    event: K,
    listener: (event: SubscriptionEvents[K]) => unknown,
  ): () => void {
    const undo = super.on(event, listener);
    void this._pump();
    return undo;
  }

  unsubscribe(): void {
    if (!this._isOver) this._owner._onUnsubscribe(this);
  }

  _onListenerError(error: unknown): void {
    this._owner._onListenerError(error);
  }

  /** Takes a message, unless the application has it or there is no room. */
  _offer(delivery: Delivery, bytes: number): void {
    if (this._isHeld(() => this._offer(delivery, bytes), delivery.epoch)) return;
    const { prev, ...message } = delivery;
    const position = this._topic._isPattern ? undefined : positionOf(delivery);
    if (position && this._has(position)) return;
    if (this._isFull) return;
    if (this._queuedBytes && this._queuedBytes + bytes > this._owner._maxQueueBytes) {
      this._isFull = true;
      // Messages without a position do not come again.
      if (!position)
        this._push({ _name: "gap", _event: { topic: this.topic, reason: "dropped" }, _bytes: 0 });
      return;
    }
    this._queuedBytes += bytes;
    this._position = position ?? this._position;
    this._push({ _name: "message", _event: message as Message, _bytes: bytes, _position: position });
  }

  /** Returns `true` if the message at this position is in the queue already, or was. */
  _has({ epoch, offset }: Position): boolean {
    return !!this._position && this._position.epoch === epoch && offset <= this._position.offset;
  }

  _offerGap(gap: Gap, position: Position | undefined): void {
    // History that was read meanwhile may reach beyond the gap.
    const later = (): void => {
      if (!position || !this._has(position)) this._offerGap(gap, position);
    };
    if (this._isHeld(later, position?.epoch) || this._isFull) return;
    this._position = position ?? this._position;
    this._push({ _name: "gap", _event: gap, _bytes: 0, _position: position });
  }

  _offerState(state: SubscriptionStateEvent): void {
    if (this._isHeld(() => this._offerState(state))) return;
    this._push({ _name: "state", _event: state, _bytes: 0 });
  }

  _offerPresence(presence: Presence): void {
    this._push({ _name: "presence", _event: presence, _bytes: 0 });
  }

  /** Keeps a call for later, if history is being read. */
  _isHeld(call: () => void, epoch?: string): boolean {
    this._held?.push([call, epoch]);
    return !!this._held;
  }

  _push(item: Item): void {
    this._queue.push(item);
    void this._pump();
  }

  /** Takes history, and then what waited for it. */
  _release(messages: Delivery[]): void {
    const held = this._held ?? [];
    this._held = undefined;
    for (const message of messages) this._offer(message, byteLength(JSON.stringify(message)));
    const epoch = messages[0]?.epoch;
    const isCurrent = epoch === this._topic._position?.epoch;
    for (const [call, other] of held) {
      // Events of an epoch before that of the history came before it.
      if (!epoch || !other || !isCurrent || other === epoch) call();
    }
  }

  /** Hands over what is in the queue. Messages wait until there is a listener for them. */
  async _pump(): Promise<void> {
    if (this._isPumping) return;
    this._isPumping = true;
    // Listeners that are added right after `subscribe` get everything.
    await null;
    for (let item; (item = this._queue[0]) && !this._isOver;) {
      if (item._name === "message" && !this._of("message").length) break;
      this._queue.shift();
      this._queuedBytes -= item._bytes;
      if (this._isFull && this._queuedBytes <= this._owner._maxQueueBytes / 2) this._topic._onRoom(this);
      if (item._name === "state") this._enter(item._event);
      else await this._emit(item._name, item._event as never);
      // After the end, the position is not the application's any more.
      if (item._position && !this._isOver) {
        this._processed = item._position;
        this._owner._onPosition(this);
      }
    }
    this._isPumping = false;
  }

  _enter(state: SubscriptionStateEvent): void {
    this.state = state;
    if (state.state === "ended") this._isOver = true;
    void this._emit("state", state);
    if (this._isOver) for (const finish of this._iterators ?? []) finish();
  }

  /** Ends the handle: at once, or after the messages in the queue. */
  _end(reason: string, error: ClientError, atOnce: boolean): void {
    this._settle(error);
    const state = { state: "ended", reason } as const;
    if (!atOnce) return this._offerState(state);
    this._queue = [];
    this._queuedBytes = 0;
    if (!this._isOver) this._enter(state);
  }

  [Symbol.asyncIterator](): AsyncIterator<Message, undefined> {
    type Result = IteratorResult<Message, undefined>;
    const end: Result = { done: true, value: undefined };
    let asked: ((result: Result) => void) | undefined;
    let arrived: Message | undefined;
    let isOver = this._isOver;
    // Tells the queue that the application is done with the message before.
    let release = (): void => {};
    const undo = isOver
      ? release
      : this.on("message", (message) => {
          arrived = message;
          const done = new Promise<void>((resolve) => (release = resolve));
          answer();
          return done;
        });
    const answer = (): void => {
      if (!asked || (!arrived && !isOver)) return;
      asked(arrived ? { done: false, value: arrived } : end);
      asked = arrived = undefined;
    };
    const finish = (): void => {
      isOver = true;
      arrived = undefined;
      undo();
      release();
      this._iterators?.delete(finish);
      answer();
    };
    if (!isOver) (this._iterators ??= new Set<() => void>()).add(finish);
    return {
      next: () => {
        if (!arrived) release();
        return new Promise<Result>((resolve) => {
          asked = resolve;
          answer();
        });
      },
      return: async () => {
        finish();
        return end;
      },
    };
  }
}
