import { backoff } from "./backoff.js";
import { Timer } from "./clock.js";
import type { Connection } from "./connection.js";
import { closedError } from "./connection.js";
import { ClientError, fromServer, isTemporary } from "./error.js";
import type { ServerError } from "./error.js";
import type { Delivery, Frame, GapData, Subscribed } from "./frames.js";
import { byteLength, matches } from "./frames.js";
import { Handle } from "./handle.js";
import type { HandleOwner } from "./handle.js";
import type { Presence, SubscribeOptions } from "./index.js";
import type { Positions } from "./positions.js";
import { Topic } from "./topic.js";
import type { TopicOwner } from "./topic.js";

/** The part of a hub that subscriptions need. */
export interface SubscriptionsOwner extends HandleOwner, TopicOwner {
  _nextId(): number;
  /** Sends what waits, soon. */
  _schedule(): void;
  /** Reads the last messages of a topic. */
  _readHistory(topic: string, count: number): Promise<Delivery[]>;
}

/** Room for the envelope of a subscribe. */
const ENVELOPE_BYTES = 80;

/** All topics of a client: subscribes to them, and routes what arrives. */
export class Subscriptions {
  readonly _connection: Connection;
  readonly _owner: SubscriptionsOwner;
  readonly _positions: Positions;
  readonly _topics = new Map<string, Topic>();
  readonly _patterns = new Set<Topic>();
  /** Topics to subscribe to with the next message. */
  readonly _pending = new Set<Topic>();
  /** Topics to unsubscribe from before that. */
  readonly _leaving = new Set<string>();
  /** Topics of each unanswered subscribe. */
  readonly _asked = new Map<number, Topic[]>();
  readonly _retries = new Set<Timer>();

  constructor(connection: Connection, owner: SubscriptionsOwner, positions: Positions) {
    this._connection = connection;
    this._owner = owner;
    this._positions = positions;
  }

  _subscribe(name: string, options: SubscribeOptions): Handle {
    let topic = this._topics.get(name);
    const isFirst = !topic;
    if (!topic) {
      topic = new Topic(name, this._owner);
      topic._position = this._positions._load(name);
      this._topics.set(name, topic);
      if (topic._isPattern) this._patterns.add(topic);
      this._pending.add(topic);
      this._owner._schedule();
    }
    const handle = new Handle(this._owner, topic, options);
    topic._handles = [...topic._handles, handle];
    if (!isFirst) this._join(handle, topic);
    return handle;
  }

  /** Adds a handle to a topic that others are subscribed to. */
  _join(handle: Handle, topic: Topic): void {
    const count = handle._options.history;
    if (topic._wasSubscribed) handle._settle();
    if (count && !topic._isPattern) {
      handle._held = [];
      handle._position = undefined;
      const failed = (error: unknown): Delivery[] => {
        if (!handle._isOver) this._owner._onError(error as ClientError);
        return [];
      };
      const read = (): Promise<Delivery[]> => this._owner._readHistory(topic._name, count).catch(failed);
      // Before the topic is subscribed to, messages could follow that are neither read nor delivered.
      void handle.ready.then(read, () => []).then((messages) => handle._release(messages));
    }
    if (topic._state.state === "live") handle._offerState({ state: "live" });
  }

  _unsubscribe(handle: Handle): void {
    const topic = handle._topic;
    const error = new ClientError("unsubscribed", "the subscription was ended");
    topic._handles = topic._handles.filter((other) => other !== handle);
    handle._end("unsubscribed", error, true);
    if (topic._handles.length || this._topics.get(topic._name) !== topic) return;
    this._remove(topic);
    if (topic._isSubscribed || topic._subscribeId) this._leaving.add(topic._name);
    this._positions._remove(topic._name);
    this._owner._schedule();
  }

  _remove(topic: Topic): void {
    this._topics.delete(topic._name);
    this._patterns.delete(topic);
    this._pending.delete(topic);
  }

  _subscribeAnew(topic: Topic): void {
    this._leaving.add(topic._name);
    this._pending.add(topic);
    this._owner._schedule();
  }

  _onLost(): void {
    this._asked.clear();
    this._leaving.clear();
    for (const timer of this._retries) timer._clear();
    this._retries.clear();
    for (const topic of this._topics.values()) {
      topic._recovering();
      this._pending.add(topic);
      // History is asked for again, and covers what is held.
      for (const handle of topic._handles) {
        if (!handle._held) continue;
        handle._held = [];
        handle._queuedBytes = 0;
      }
    }
  }

  _flush(): void {
    for (const topic of this._leaving)
      this._connection._send("unsubscribe", { topic }, this._owner._nextId());
    this._leaving.clear();
    if (!this._pending.size) return;
    const limit = this._connection._limit("max_message_bytes") - ENVELOPE_BYTES;
    const most = this._connection._limit("max_subscriptions");
    let topics: Topic[] = [];
    let entries: object[] = [];
    let bytes = 0;
    // A topic recovers only if no pattern that matches it came before.
    const pending = [...this._pending].sort((a, b) => +a._isPattern - +b._isPattern);
    this._pending.clear();
    for (const topic of pending) {
      const { history, presence } = topic._handles[0]?._options ?? {};
      const entry = { topic: topic._name, recover: topic._recoverFrom(), history, presence };
      const length = byteLength(JSON.stringify(entry)) + 1;
      if (topics.length && (bytes + length > limit || topics.length >= most)) {
        this._ask(topics, entries);
        topics = [];
        entries = [];
        bytes = 0;
      }
      topics.push(topic);
      entries.push(entry);
      bytes += length;
    }
    this._ask(topics, entries);
  }

  _ask(topics: Topic[], entries: object[]): void {
    const id = this._owner._nextId();
    this._asked.set(id, topics);
    for (const topic of topics) topic._subscribeId = id;
    this._connection._send("subscribe", entries.length > 1 ? { topics: entries } : entries[0], id);
  }

  /** Takes what arrived for topics. Returns `false` if it was something else. */
  _receive({ type, id, data }: Frame, text: string): boolean {
    const asked = this._asked.get(id as number);
    if (asked) {
      this._asked.delete(id as number);
      this._onReply(
        asked,
        id as number,
        type === "error" ? { error: data as ServerError } : (data as Subscribed),
      );
      return true;
    }
    const name = (data as { topic?: unknown } | undefined)?.topic;
    if (typeof name !== "string") return false;
    const topic = this._topics.get(name);
    if (type === "unsubscribed") {
      if (topic && id === undefined) {
        const message = `the token no longer allows to subscribe to ${name}`;
        this._remove(topic);
        topic._end("forbidden", new ClientError("forbidden", message), false);
      }
    } else if (type === "message" || type === "gap" || type === "position") {
      const received = [type, data as Delivery & GapData, byteLength(text)] as ["message", Delivery, number];
      const isNew = topic ? topic._receive(received) : true;
      for (const pattern of this._patterns) {
        if (isNew && pattern !== topic && matches(pattern._name, name)) pattern._receive(received);
      }
    } else if (type === "presence") {
      topic?._onPresence(data as Presence);
    } else {
      return false;
    }
    return true;
  }

  _onReply(
    asked: Topic[],
    id: number,
    reply: { topics?: Subscribed[]; error?: ServerError } | Subscribed,
  ): void {
    const entries = "topics" in reply && reply.topics ? reply.topics : asked.map(() => reply as Subscribed);
    const failed = new Map<number | undefined, Topic[]>();
    asked.forEach((topic, index) => {
      const entry = entries[index];
      // The topic may have ended, and another subscription may be on its way.
      if (!entry || topic._subscribeId !== id || !topic._handles.length) return;
      const { error } = entry;
      if (!error) {
        topic._onSubscribed(entry);
      } else if (isTemporary(error.code)) {
        topic._subscribeId = 0;
        topic._attempts++;
        const ms = error.retry_after_ms;
        failed.set(ms, [...(failed.get(ms) ?? []), topic]);
      } else {
        this._remove(topic);
        topic._end(error.code, fromServer(error), false);
      }
    });
    for (const [ms, topics] of failed) this._retry(topics, ms);
  }

  /** Subscribes to topics again later, with one message. */
  _retry(topics: Topic[], ms: number | undefined): void {
    const settings = this._connection._settings;
    const timer = new Timer(settings.clock);
    this._retries.add(timer);
    timer._set(ms ?? backoff(settings, Math.max(...topics.map((topic) => topic._attempts))), () => {
      this._retries.delete(timer);
      for (const topic of topics) if (topic._handles.length) this._pending.add(topic);
      this._owner._schedule();
    });
  }

  _end(atOnce: boolean): void {
    this._onLost();
    for (const topic of [...this._topics.values()]) {
      this._remove(topic);
      topic._end("closed", closedError(), atOnce);
    }
  }
}
