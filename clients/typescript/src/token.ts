import { ClientError } from "./error.js";
import type { HubOptions } from "./index.js";

/** Characters that a subprotocol may have (RFC 6455, section 4.1). */
const SUBPROTOCOL = /^[\w!#$%&'*+.^`|~-]+$/;

/** The application's token, and how it is sent. */
export class Token {
  readonly _source: HubOptions["token"];
  /** Whether tokens are sent after the handshake, because one with a token failed without a reason. */
  _afterHandshake = false;

  constructor(source: HubOptions["token"]) {
    this._source = source;
  }

  get _isFunction(): boolean {
    return typeof this._source === "function";
  }

  /** Returns the token to use now; empty if there is none. */
  async _get(): Promise<string> {
    try {
      const token = typeof this._source === "function" ? await this._source() : this._source;
      return token || "";
    } catch (cause) {
      throw new ClientError("token_failed", `the token function failed: ${String(cause)}`, { cause });
    }
  }

  /** Returns `true` if this token goes into the handshake. */
  _isForHandshake(token: string): boolean {
    return !this._afterHandshake && SUBPROTOCOL.test(token);
  }
}

/** Returns the claim `exp` of a token in milliseconds, if it has one. */
export function expiryOf(token: string): number | undefined {
  try {
    const claims = JSON.parse(atob((token.split(".")[1] ?? "").replace(/-/g, "+").replace(/_/g, "/"))) as {
      exp?: unknown;
    };
    return typeof claims.exp === "number" ? claims.exp * 1000 : undefined;
  } catch {
    return undefined;
  }
}
