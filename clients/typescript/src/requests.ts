import { Timer } from "./clock.js";
import type { Connection } from "./connection.js";
import { closedError } from "./connection.js";
import { ClientError, fromServer } from "./error.js";
import type { ServerError } from "./error.js";
import type { Frame } from "./frames.js";
import { byteLength } from "./frames.js";

interface Request {
  readonly _text: string;
  readonly _timer: Timer;
  readonly _resolve: (data: unknown) => void;
  readonly _reject: (error: ClientError) => void;
  _sent: boolean;
}

/** Returns the error of a message that the server would not take, if it is too long. */
export function tooLarge(connection: Connection, bytes: number): ClientError | undefined {
  const limit = connection._limit("max_message_bytes");
  if (bytes <= limit) return undefined;
  return new ClientError(
    "message_too_large",
    `the message has ${bytes} bytes, and the server takes ${limit}`,
  );
}

/** Messages with one answer that may be sent again: `echo` and `history`. */
export class Requests {
  readonly _connection: Connection;
  readonly _requests = new Map<number, Request>();

  constructor(connection: Connection) {
    this._connection = connection;
  }

  _request(id: number, type: string, data: unknown): Promise<unknown> {
    return new Promise((_resolve, _reject) => {
      const connection = this._connection;
      if (connection._isClosed) return _reject(closedError());
      const { clock, requestTimeout } = connection._settings;
      const _text = JSON.stringify({ type, id, data });
      const _timer = new Timer(clock);
      this._requests.set(id, { _text, _timer, _resolve, _reject, _sent: false });
      _timer._set(requestTimeout, () =>
        this._fail(id, new ClientError("timeout", `no answer to ${type} in time`)),
      );
    });
  }

  _flush(): void {
    for (const [id, request] of this._requests) {
      if (request._sent) continue;
      const error = tooLarge(this._connection, byteLength(request._text));
      if (error) {
        this._fail(id, error);
      } else {
        request._sent = true;
        this._connection._sendText(request._text);
      }
    }
  }

  _lost(): void {
    for (const request of this._requests.values()) request._sent = false;
  }

  /** Takes an answer. Returns `false` if it is none of these. */
  _answer({ type, id, data }: Frame): boolean {
    const request = this._requests.get(id as number);
    if (!request) return false;
    if (type === "error") {
      this._fail(id as number, fromServer(data as ServerError));
    } else {
      this._take(id as number);
      request._resolve(data);
    }
    return true;
  }

  _fail(id: number, error: ClientError): void {
    this._take(id)?._reject(error);
  }

  _take(id: number): Request | undefined {
    const request = this._requests.get(id);
    request?._timer._clear();
    this._requests.delete(id);
    return request;
  }

  _end(): void {
    for (const id of this._requests.keys()) this._fail(id, closedError());
  }
}
