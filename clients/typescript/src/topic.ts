import type { ClientError } from "./error.js";
import type { Delivery, GapData, Subscribed } from "./frames.js";
import { covers, defined, isByPolicy, isPattern, positionOf } from "./frames.js";
import type { Handle } from "./handle.js";
import type { Gap, Position, Presence, Published, SubscriptionStateEvent } from "./index.js";
import type { Subscriptions } from "./subscriptions.js";

/** The part of the subscriptions that a topic needs. */
export interface TopicOwner {
  readonly _maxQueueBytes: number;
  readonly _subscriptions: Subscriptions;
  /** Returns `true` if a publish to the topic is unanswered that excludes this client. */
  _waitsForPublished(topic: string): boolean;
  /** Returns `true` for the ID of this client, now or earlier. */
  _isOwn(clientId: string): boolean;
  _onHole(topic: string): void;
}

/** A position, and the offset of the message before it. */
type Place = Partial<Position> & { readonly prev?: number };

type Received = ["message", Delivery, number] | ["gap", GapData, number] | ["position", GapData, number];

/** One subscription on the wire, with the handles that share it. */
export class Topic {
  readonly _name: string;
  readonly _isPattern: boolean;
  readonly _owner: TopicOwner;
  _handles: Handle[] = [];
  _state: SubscriptionStateEvent = { state: "subscribing" };
  /** Position up to which all is received. */
  _position: Position | undefined;
  /** The newest position ever, which a slow handle does not move back. */
  _newest: Position | undefined;
  /** The unanswered subscribe, if not 0. */
  _subscribeId = 0;
  /** Whether this connection is subscribed. */
  _isSubscribed = false;
  /** Whether a subscribe was ever answered. */
  _wasSubscribed = false;
  /** Messages that come before live ones. */
  _replay = 0;
  _attempts = 0;
  /** The state after the replay. */
  _afterReplay: SubscriptionStateEvent = { state: "live" };
  /** Deliveries that wait for the answer to an own publish. */
  _waiting: Received[] = [];
  _waitingBytes = 0;
  /** Own messages that this client does not get: the position for each offset. */
  _own: Map<number, Position> | undefined;

  constructor(name: string, owner: TopicOwner) {
    this._name = name;
    this._isPattern = isPattern(name);
    this._owner = owner;
  }

  _enter(state: SubscriptionStateEvent): void {
    this._state = state;
    for (const handle of this._handles) handle._offerState(state);
  }

  _recovering(): void {
    this._isSubscribed = false;
    this._subscribeId = this._waitingBytes = 0;
    this._waiting = [];
    if (this._state.state === "live") this._enter({ state: "recovering" });
  }

  /** Returns the position to continue from: that of the slowest handle which dropped messages. */
  _recoverFrom(): Position | undefined {
    return this._handles.reduce((from, handle) => {
      const behind = handle._isFull ? handle._position : undefined;
      return behind && from && !covers(behind, from) ? behind : from;
    }, this._position);
  }

  /** Takes the reply to a subscribe. */
  _onSubscribed(reply: Subscribed): void {
    const position = positionOf(reply);
    const asked = this._recoverFrom()?.epoch;
    let { recovered, reason } = reply;
    if (recovered === undefined && this._wasSubscribed) {
      recovered = false;
      reason = "no_history";
    }
    const isAnySlow = this._handles.some((handle) => handle._isFull);
    for (const handle of this._handles) {
      let before = handle._position;
      handle._isFull = false;
      handle._settle();
      if (!handle._held?.length) handle._epoch = position?.epoch;
      if (before && position) {
        // Offsets go on under a new epoch.
        if (recovered && before.epoch === asked)
          handle._position = before = { ...before, epoch: position.epoch };
        // A handle that is ahead of a slow one misses nothing.
        if (recovered ? before.epoch === position.epoch : isAnySlow && covers(before, position)) continue;
      } else if (recovered) continue;
      handle._position = undefined;
      if (recovered !== undefined)
        handle._offerGap(gapBetween(this._name, reason ?? "epoch", before, position), position);
      if (!handle._held) handle._position = position;
    }
    this._position = position;
    if (!recovered) this._newest = position;
    this._forgetOwn();
    this._subscribeId = this._attempts = 0;
    this._isSubscribed = this._wasSubscribed = true;
    this._replay = reply.replay ?? 0;
    this._afterReplay = defined<SubscriptionStateEvent>({ state: "live", recovered });
    if (!this._replay) this._enter(this._afterReplay);
  }

  /** Takes a message, gap or position from the server. Returns `true` for a message that is new. */
  _receive(received: Received): boolean {
    const [type, data] = received;
    const isNew = this._isNew(data);
    if (!this._isSubscribed) return isNew;
    if (this._waiting.length || this._mustWait(type, data)) {
      // More than a queue holds is asked for again when the answer is there.
      if ((this._waitingBytes += received[2]) > this._owner._maxQueueBytes) this._waiting = [];
      this._waiting.push(received);
    } else {
      this._process(received);
    }
    return isNew && !this._isOwn(data);
  }

  _isNew(data: Partial<Position>): boolean {
    const position = positionOf(data);
    if (!position) return true;
    if (covers(this._newest, position)) return false;
    this._newest = position;
    return true;
  }

  /** Returns `true` for a delivery that the answer to an own publish explains. */
  _mustWait(type: string, data: Delivery | GapData): boolean {
    if (type !== "message" || !positionOf(data) || !this._owner._waitsForPublished(this._name)) return false;
    this._fill(data);
    return this._isHole(data) || (typeof data.from === "string" && this._owner._isOwn(data.from));
  }

  _isOwn({ epoch, offset }: Partial<Position>): boolean {
    return epoch !== undefined && this._own?.get(offset ?? 0)?.epoch === epoch;
  }

  /** Moves the position over own messages before a delivery. */
  _fill({ epoch, offset, prev = (offset ?? 0) - 1 }: Place): void {
    while (this._position && this._position.epoch === epoch && this._position.offset < prev) {
      const next = this._own?.get(this._position.offset + 1);
      if (!next || next.epoch !== epoch) return;
      this._skip(next);
    }
  }

  /** Moves the position over offsets that do not come. A handle that is slow will meet them again. */
  _skip(position: Position): void {
    this._position = position;
    for (const handle of this._handles) {
      if (!handle._isFull && !handle._held && handle._isNext(position)) handle._position = position;
    }
    // Else messages may come again from an earlier position.
    if (!this._handles.some((handle) => handle._isFull || handle._held)) this._forgetOwn();
  }

  /** Forgets own messages up to the position. Those of another epoch may be to come. */
  _forgetOwn(): void {
    for (const own of this._own?.values() ?? []) {
      if (!this._position || covers(this._position, own)) this._own?.delete(own.offset);
    }
  }

  _isHole({ epoch, offset, prev = (offset ?? 0) - 1 }: Place): boolean {
    const position = this._position;
    return !!position && (position.epoch !== epoch || prev > position.offset);
  }

  _process([type, data, bytes]: Received): void {
    const position = this._isPattern ? undefined : positionOf(data);
    const current = this._position;
    const isRepeated = position && covers(current, position);
    if (type === "message") {
      this._fill(data);
      if (position && this._isHole(data)) {
        this._owner._onHole(this._name);
        return this._subscribeAnew();
      }
    }
    let replayed = Number(type === "message");
    if (!isRepeated) {
      this._position = position ?? current;
      if (type === "message") {
        if (position && this._isOwn(data)) this._skip(position);
        else for (const handle of this._handles) handle._offer(data, bytes);
      } else if (type === "gap") {
        const { topic, reason, from, to } = data;
        // Policies that skip count only what they send. A new epoch ends the replay.
        if (reason === "epoch") replayed = Infinity;
        else if (!isByPolicy(reason)) replayed = data.offset - (current?.offset ?? 0);
        for (const handle of this._handles)
          handle._offerGap(defined<Gap>({ topic, reason, from, to }), position);
      } else if (position) {
        this._skip(position);
      }
    }
    if (this._replay && !((this._replay -= replayed) > 0)) {
      this._replay = 0;
      this._enter(this._afterReplay);
    }
  }

  _subscribeAnew(): void {
    this._recovering();
    this._owner._subscriptions._subscribeAnew(this);
  }

  /** Takes the end of a publish that this client was excluded from. */
  _onPublished(published: Partial<Published> = {}): void {
    const position = positionOf(published);
    if (position && !covers(this._position, position)) {
      (this._own ??= new Map<number, Position>()).set(position.offset, position);
      if (this._isSubscribed && !this._replay) this._fill({ epoch: position.epoch, prev: position.offset });
    }
    const waiting = this._waiting;
    const isTooLong = this._waitingBytes > this._owner._maxQueueBytes;
    this._waiting = [];
    this._waitingBytes = 0;
    if (isTooLong) this._subscribeAnew();
    else for (const received of waiting) this._receive(received);
  }

  _onPresence(presence: Presence): void {
    for (const handle of this._handles) handle._offerPresence(presence);
  }

  /** Lets a handle go on whose queue was full and has room: with a new subscription, if it can recover. */
  _onRoom(handle: Handle): void {
    if (!this._position) handle._isFull = false;
    else if (this._isSubscribed && this._handles.includes(handle)) this._subscribeAnew();
  }

  _end(reason: string, error: ClientError, atOnce: boolean): void {
    for (const handle of this._handles) handle._end(reason, error, atOnce);
    this._handles = [];
    this._isSubscribed = false;
  }
}

/** Returns the gap between two positions. Its offsets are known if the epoch is the same. */
function gapBetween(
  topic: string,
  reason: string,
  before: Position | undefined,
  after: Position | undefined,
): Gap {
  const from = (before?.offset ?? 0) + 1;
  const to = after?.offset ?? 0;
  return before && after && before.epoch === after.epoch && from <= to
    ? { topic, reason, from, to }
    : { topic, reason };
}
