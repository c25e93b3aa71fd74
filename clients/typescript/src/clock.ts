import type { Clock } from "./index.js";

export const systemClock: Clock = {
  now: () => performance.now(),
  setTimeout: (callback, ms) => setTimeout(callback, ms),
  clearTimeout: (timer) => clearTimeout(timer),
};

/** The longest time that timers of browsers take. */
export const MAX_DELAY = 2 ** 31 - 1;

/** One timer, which is set anew by each call of `_set`. */
export class Timer {
  readonly _clock: Clock;
  _timer: unknown;

  constructor(clock: Clock) {
    this._clock = clock;
  }

  _set(ms: number, callback: () => unknown): void {
    this._clear();
    this._timer = this._clock.setTimeout(callback, Math.min(Math.max(ms, 0), MAX_DELAY));
  }

  _clear(): void {
    if (this._timer !== undefined) this._clock.clearTimeout(this._timer as never);
    this._timer = undefined;
  }
}
