import type { ClientError } from "./error.js";
import { Emitter } from "./emitter.js";
import type { Delivery } from "./frames.js";
import { byteLength, covers, defined, isByPolicy, positionOf } from "./frames.js";
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
import type { Positions } from "./positions.js";
import type { Subscriptions } from "./subscriptions.js";
import type { Topic } from "./topic.js";

/** The name of an event, what its listeners get, and the position after it. */
type Item = { _bytes: number; _position?: Position | undefined } & (
  | { _name: "message"; _event: Message }
  | { _name: "gap"; _event: Gap }
  | { _name: "state"; _event: SubscriptionStateEvent }
  | { _name: "presence"; _event: Presence }
);

/** Bytes that a gap counts for while it waits for history. */
const GAP_BYTES = 64;

/** The part of a hub that a handle needs. */
export interface HandleOwner {
  readonly _maxQueueBytes: number;
  readonly _positions: Positions;
  readonly _subscriptions: Subscriptions;
  _onListenerError(error: unknown): void;
  _onError(error: ClientError): void;
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
  /** Epoch of the topic. That of the position is a later one, if history was read meanwhile. */
  _epoch: string | undefined;
  /** Reason of the last gap since the last state that no delivery policy made. */
  _missed: string | undefined;
  /** Calls that wait until history has been read. */
  _held: (() => void)[] | undefined;
  _isPumping = false;
  _isOver = false;
  _iterators: Set<() => void> | undefined;

  constructor(owner: HandleOwner, topic: Topic, options: SubscribeOptions) {
    super();
    this.topic = topic._name;
    this._owner = owner;
    this._options = options;
    this._topic = topic;
    this._position = topic._position;
    this._epoch = topic._position?.epoch;
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
    if (!this._isOver) this._owner._subscriptions._unsubscribe(this);
  }

  _onListenerError(error: unknown): void {
    this._owner._onListenerError(error);
  }

  /** Takes a message, unless the application has it or there is no room. */
  _offer(delivery: Delivery, bytes: number): void {
    if (this._isHeld(() => this._offer(delivery, bytes), bytes)) return;
    const { prev, ...message } = delivery;
    const position = this._topic._isPattern ? undefined : positionOf(delivery);
    if (this._isFull || (position && !this._isNext(position))) return;
    if (this._queuedBytes && this._queuedBytes + bytes > this._owner._maxQueueBytes)
      return this._overflow(position);
    this._queuedBytes += bytes;
    this._position = position ?? this._position;
    this._push("message", message as Message, position, bytes);
  }

  /** Drops messages from now on. Those without a position do not come again. */
  _overflow(position: Position | undefined): void {
    this._isFull = true;
    if (!position) this._push("gap", { topic: this.topic, reason: "dropped" });
  }

  /** Returns `true` for a later position of the same epoch. A new epoch begins with a gap. */
  _isNext({ epoch, offset }: Position): boolean {
    const at = this._position;
    return !at || (at.epoch === epoch && offset > at.offset);
  }

  /** Takes a gap, unless the handle is beyond it. */
  _offerGap(gap: Gap, position: Position | undefined): void {
    if (this._isHeld(() => this._offerGap(gap, position), GAP_BYTES)) return;
    const at = this._position;
    const { from } = gap;
    if (position) {
      const isAhead = at && this._epoch && at.epoch !== this._epoch;
      this._epoch = position.epoch;
      if (covers(at, position)) return;
      // A history that is emptied keeps its offsets, so a gap that leads on is newer.
      if (at && at.epoch !== position.epoch && (from || (isAhead && position.offset < at.offset))) return;
    }
    // Messages that were dropped of an earlier epoch never come again.
    if (this._isFull && gap.reason !== "epoch") return;
    this._position = position ?? at;
    if (!isByPolicy(gap.reason)) this._missed = gap.reason;
    if (from && at) gap = { ...gap, from: Math.max(from, at.offset + 1) };
    this._push("gap", gap, position);
  }

  _offerState(state: SubscriptionStateEvent): void {
    if (this._isHeld(() => this._offerState(state))) return;
    if (state.recovered !== undefined)
      state = defined({ ...state, recovered: !this._missed, reason: this._missed });
    this._missed = undefined;
    this._push("state", state);
  }

  _offerPresence(presence: Presence): void {
    this._push("presence", presence);
  }

  /** Keeps a call for later, if history is being read. What exceeds the limit is dropped, but for states. */
  _isHeld(call: () => void, bytes = 0): boolean {
    if (!this._held) return false;
    this._queuedBytes += bytes;
    if (!bytes || this._queuedBytes <= this._owner._maxQueueBytes) this._held.push(call);
    return true;
  }

  _push<K extends keyof SubscriptionEvents>(
    name: K,
    event: SubscriptionEvents[K],
    position?: Position,
    bytes = 0,
  ): void {
    this._queue.push({ _name: name, _event: event, _position: position, _bytes: bytes } as Item);
    void this._pump();
  }

  /** Takes history, and then what waited for it. */
  _release(messages: Delivery[]): void {
    const held = this._held ?? [];
    const isTooLong = this._queuedBytes > this._owner._maxQueueBytes;
    this._held = undefined;
    this._queuedBytes = 0;
    for (const message of messages) this._offer(message, byteLength(JSON.stringify(message)));
    for (const call of held) call();
    if (isTooLong) this._overflow(this._position);
    if (this._isFull && !this._queue.length) this._topic._onRoom(this);
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
        this._owner._positions._onPosition(this);
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
