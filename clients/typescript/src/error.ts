import type { HubError } from "./index.js";

export class ClientError extends Error implements HubError {
  readonly code: string;
  readonly retryAfterMs?: number;

  constructor(code: string, message: string, options: { retryAfterMs?: number; cause?: unknown } = {}) {
    super(message);
    this.name = "HubError";
    this.code = code;
    Object.assign(this, options);
  }
}

/** The `data` of the server's `error`, and of an entry that failed. */
export interface ServerError {
  readonly code: string;
  readonly message: string;
  readonly retry_after_ms?: number;
}

/** Returns the error that the application sees for one of the server's. */
export function fromServer({ code, message, retry_after_ms: ms }: ServerError): ClientError {
  return new ClientError(code, message, ms === undefined ? {} : { retryAfterMs: ms });
}

/** Returns `true` for errors after which the same message may succeed later. */
export function isTemporary(code: string): boolean {
  return /^(unavailable|rate_limited|too_many_topics|internal)$/.test(code);
}
