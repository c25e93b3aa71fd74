import type { Position } from "./index.js";
import type { ServerError } from "./error.js";

/** A message from the server. */
export interface Frame {
  readonly type: string;
  readonly id?: number | string;
  readonly data?: unknown;
}

export interface Welcome {
  readonly client_id: string;
  readonly server_time: number;
  readonly limits: Readonly<Record<string, number>>;
}

export interface Goodbye {
  readonly code: number;
  readonly reason: string;
  readonly reconnect: boolean;
  readonly retry_after_ms?: number | undefined;
}

export interface Delivery extends Partial<Position> {
  readonly topic: string;
  readonly message: unknown;
  readonly from?: string;
  readonly prev?: number;
}

export interface GapData extends Position {
  readonly topic: string;
  readonly reason: string;
  readonly from?: number;
  readonly to?: number;
}

/** The reply to a subscribe, for one topic. */
export interface Subscribed extends Partial<Position> {
  readonly topic: string;
  readonly recovered?: boolean;
  readonly reason?: string;
  readonly replay?: number;
  readonly error?: ServerError;
}

/** Returns the position of a message or reply, or `undefined` if its topic has no history. */
export function positionOf({ epoch, offset, time }: Partial<Position>): Position | undefined {
  return epoch === undefined || offset === undefined ? undefined : { epoch, offset, time: time ?? 0 };
}

/** Returns `true` if a position is in the epoch of another one, and not before it. */
export function covers(position: Position | undefined, { epoch, offset }: Position): boolean {
  return !!position && position.epoch === epoch && position.offset >= offset;
}

/** Returns `true` for the reason of a gap that a delivery policy makes. Recovery is complete with it. */
export function isByPolicy(reason: string): boolean {
  return /^(dropped|conflated)$/.test(reason);
}

/** Returns a copy without keys whose value is `undefined`. */
export function defined<T extends object>(object: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as T;
}

/** Returns the length of a text in UTF-8. */
export function byteLength(text: string): number {
  let bytes = text.length;
  // A regular expression over ASCII is several times as fast as the loop.
  if (/^[\x00-\x7f]*$/.test(text)) return bytes;
  for (let index = text.length; index--;) {
    const code = text.charCodeAt(index);
    // The two halves of a surrogate pair are four bytes together.
    if (code > 0x7f) bytes += code > 0x7ff && (code & 0xf800) !== 0xd800 ? 2 : 1;
  }
  return bytes;
}

/** Returns `true` if a pattern matches a topic. A topic matches itself. */
export function matches(pattern: string, topic: string): boolean {
  const levels = topic.split(".");
  const wanted = pattern.split(".");
  const rest = wanted[wanted.length - 1] === ">";
  if (rest ? levels.length < wanted.length : levels.length !== wanted.length) return false;
  return wanted.every(
    (level, index) => level === "*" || level === levels[index] || (rest && index === wanted.length - 1),
  );
}

/** Returns `true` if a text is a pattern. */
export function isPattern(topic: string): boolean {
  return /(^|\.)([*]|>$)(\.|$)/.test(topic);
}
