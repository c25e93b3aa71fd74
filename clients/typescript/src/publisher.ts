import { backoff } from "./backoff.js";
import { Timer } from "./clock.js";
import type { Connection } from "./connection.js";
import { closedError } from "./connection.js";
import { ClientError, fromServer, isTemporary } from "./error.js";
import type { ServerError } from "./error.js";
import type { Frame } from "./frames.js";
import { byteLength } from "./frames.js";
import type { Published, PublishOptions } from "./index.js";
import { tooLarge } from "./requests.js";

/** The most publishes that wait for their answers. */
const WINDOW = 32;

interface Publication {
  readonly _id: number;
  readonly _topic: string;
  readonly _text: string;
  readonly _bytes: number;
  readonly _excludesSelf: boolean;
  /** Publications that are sent one after the other. */
  readonly _lane: string | number;
  readonly _timer: Timer;
  readonly _retryTimer: Timer;
  readonly _resolve: (published: Published) => void;
  readonly _reject: (error: ClientError) => void;
  /** Whether it was sent on any connection. */
  _wasSent: boolean;
  _isSent: boolean;
  _attempts: number;
}

/** Orders publications: those that the server may have, then by age. */
function compare(a: Publication, b: Publication): number {
  return +b._wasSent - +a._wasSent || a._id - b._id;
}

/** Returns a text that no other client has. */
function randomText(): string {
  return crypto.getRandomValues(new Uint32Array(4)).reduce((text, number) => text + number.toString(36), "");
}

/** Publishes messages over reconnects, in the order of each topic. */
export class Publisher {
  readonly _connection: Connection;
  readonly _onPublished: (topic: string, published?: Partial<Published>) => void;
  readonly _once = randomText();
  readonly _publications = new Map<number, Publication>();
  readonly _lanes = new Map<string | number, Publication[]>();
  /** The publications that may be sent now, by age. */
  _ready: Publication[] = [];
  /** Topics of publishes with `exclude_self` that the server may have and answer. */
  readonly _excluded = new Map<number, string>();
  readonly _hold: Timer;
  _isHeld = false;
  _waitingBytes = 0;
  _unanswered = 0;

  /** `onPublished` is called for each end of a publish with `exclude_self` that was sent. */
  constructor(
    connection: Connection,
    onPublished: (topic: string, published?: Partial<Published>) => void,
  ) {
    this._connection = connection;
    this._onPublished = onPublished;
    this._hold = new Timer(connection._settings.clock);
  }

  _publish(id: number, topic: string, message: unknown, options: PublishOptions): Promise<Published> {
    return new Promise((_resolve, _reject) => {
      const connection = this._connection;
      const { clock, maxPendingBytes } = connection._settings;
      const once = `${this._once}-${id}`;
      const data = { topic, message, exclude_self: options.excludeSelf || undefined, once };
      const _text = JSON.stringify({ type: "publish", id, data });
      const _bytes = byteLength(_text);
      if (connection._isClosed) throw closedError();
      const error = tooLarge(connection, _bytes);
      if (error) throw error;
      if (this._waitingBytes + _bytes > maxPendingBytes) {
        throw new ClientError("queue_full", `more than ${maxPendingBytes} bytes wait to be published`);
      }
      const publication: Publication = {
        _id: id,
        _topic: topic,
        _text,
        _bytes,
        _excludesSelf: !!options.excludeSelf,
        _lane: options.ordered === false ? id : topic,
        _timer: new Timer(clock),
        _retryTimer: new Timer(clock),
        _resolve,
        _reject,
        _wasSent: false,
        _isSent: false,
        _attempts: 0,
      };
      this._waitingBytes += _bytes;
      this._publications.set(id, publication);
      const lane = this._lanes.get(publication._lane) || [];
      this._lanes.set(publication._lane, lane);
      if (lane.push(publication) === 1) this._ready.push(publication);
    });
  }

  /** Sends what may be sent; with `again`, only what the server may have already. */
  _flush(again = false): void {
    if (this._isHeld) return;
    while (this._unanswered < WINDOW) {
      const publication = this._ready[0];
      if (!publication || (again && !publication._wasSent)) return;
      this._ready.shift();
      // The limit is not known before the first `welcome`.
      const error = tooLarge(this._connection, publication._bytes);
      if (error) this._fail(publication, error);
      else this._send(publication);
    }
  }

  _send(publication: Publication): void {
    if (!publication._wasSent) {
      publication._wasSent = true;
      const timeout = new ClientError("timeout", "no answer to publish in time; it may have been published");
      publication._timer._set(this._connection._settings.publishTimeout, () =>
        this._fail(publication, timeout),
      );
      if (publication._excludesSelf) this._excluded.set(publication._id, publication._topic);
    }
    publication._isSent = true;
    this._unanswered++;
    this._waitingBytes -= publication._bytes;
    this._connection._sendText(publication._text);
  }

  _endExcluded(id: number, published?: Partial<Published>): void {
    const topic = this._excluded.get(id);
    if (this._excluded.delete(id)) this._onPublished(topic as string, published);
  }

  /** Takes an answer. Returns `false` if it is none of these. */
  _answer({ type, id, data }: Frame): boolean {
    const publication = this._publications.get(id as number);
    const error = type === "error" && (data as ServerError);
    if (publication) {
      if (!publication._isSent) return false;
      if (error && isTemporary(error.code)) {
        this._retry(publication, error);
        return true;
      }
      this._take(publication);
    }
    // A late answer tells the position of the message too.
    this._endExcluded(id as number, data as Published);
    if (!publication) return false;
    if (error) publication._reject(fromServer(error));
    else publication._resolve(data as Published);
    this._resume();
    return true;
  }

  _retry(publication: Publication, error: ServerError): void {
    const delay = error.retry_after_ms ?? backoff(this._connection._settings, ++publication._attempts);
    this._unsend(publication);
    if (error.code === "rate_limited") {
      this._isHeld = true;
      this._hold._set(delay, () => {
        this._isHeld = false;
        this._resume();
      });
      return this._makeReady(publication);
    }
    publication._retryTimer._set(delay, () => {
      this._makeReady(publication);
      this._resume();
    });
  }

  _resume(): void {
    if (this._connection._isOpen) this._flush();
  }

  _unsend(publication: Publication): void {
    publication._isSent = false;
    this._unanswered--;
    this._waitingBytes += publication._bytes;
  }

  _makeReady(publication: Publication): void {
    const last = this._ready[this._ready.length - 1];
    this._ready.push(publication);
    if (last && compare(last, publication) > 0) this._ready.sort(compare);
  }

  _lost(): void {
    for (const publication of this._publications.values()) {
      if (!publication._isSent) continue;
      this._unsend(publication);
      this._ready.push(publication);
    }
    this._ready.sort(compare);
    // Answers that are late do not come on another connection.
    for (const id of this._excluded.keys()) if (!this._publications.has(id)) this._excluded.delete(id);
  }

  /** Fails a publication that is too large, or was not answered in time. */
  _fail(publication: Publication, error: ClientError): void {
    // The server may still answer on this connection.
    const isLate = publication._isSent;
    this._take(publication);
    if (!isLate) this._endExcluded(publication._id);
    publication._reject(error);
    this._resume();
  }

  /** Removes a publication that has ended, and lets the next one of its lane follow. */
  _take(publication: Publication): void {
    if (publication._isSent) this._unsend(publication);
    else this._ready = this._ready.filter((other) => other !== publication);
    this._waitingBytes -= publication._bytes;
    publication._timer._clear();
    publication._retryTimer._clear();
    this._publications.delete(publication._id);
    const lane = this._lanes.get(publication._lane) ?? [];
    lane.shift();
    const next = lane[0];
    if (next) this._makeReady(next);
    else this._lanes.delete(publication._lane);
  }

  _end(): void {
    this._hold._clear();
    this._ready = [];
    for (const publication of this._publications.values()) {
      publication._timer._clear();
      publication._retryTimer._clear();
      publication._reject(closedError());
    }
    this._publications.clear();
  }
}
