import { systemClock } from "./clock.js";
import { defined } from "./frames.js";
import type { HubOptions } from "./index.js";

const DEFAULTS = {
  clock: systemClock,
  minDelay: 500,
  maxDelay: 20_000,
  connectTimeout: 10_000,
  pongTimeout: 10_000,
  maxQueueBytes: 2 ** 20,
  maxPendingBytes: 2 ** 20,
  requestTimeout: 30_000,
  publishTimeout: 120_000,
};

/** The options with defaults. Times are in milliseconds. */
export type Settings = HubOptions & Required<Pick<HubOptions, keyof typeof DEFAULTS | "WebSocket">>;

export function withDefaults(options: HubOptions): Settings {
  const WebSocket = options.WebSocket ?? globalThis.WebSocket;
  if (!WebSocket)
    throw new TypeError("no global WebSocket: pass the option WebSocket, such as that of ws");
  return { ...DEFAULTS, ...defined<HubOptions>(options), WebSocket };
}
