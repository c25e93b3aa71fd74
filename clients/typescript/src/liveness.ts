import type { Clock } from "./index.js";
import { Timer } from "./clock.js";

/** Lateness of a timer from which the computer is taken to have slept. */
const LATE = 1000;

/** Notices when the server shows no life. */
export class Liveness {
  readonly _clock: Clock;
  readonly _timer: Timer;
  readonly _pongTimeout: number;
  readonly _ping: () => void;
  readonly _onDead: () => void;
  _silence = 0;
  _seenAt = 0;
  /** Whether a ping is unanswered. */
  _isAsking = false;

  constructor(clock: Clock, pongTimeout: number, ping: () => void, onDead: () => void) {
    this._clock = clock;
    this._timer = new Timer(clock);
    this._pongTimeout = pongTimeout;
    this._ping = ping;
    this._onDead = onDead;
  }

  /** Starts to watch. `silence` is the time without a frame after which the client asks. */
  _start(silence: number): void {
    this._silence = silence;
    this._seen();
    this._watch();
  }

  /** Notes that a frame arrived. */
  _seen(): void {
    this._seenAt = this._clock.now();
    this._isAsking = false;
  }

  _watch(): void {
    const rest = this._seenAt + this._silence - this._clock.now();
    if (rest > 0) this._timer._set(rest, () => this._watch());
    else this._ask(true);
  }

  /** Sends a ping. If the timer is late and nothing arrived, a second one is sent if `again`. */
  _ask(again: boolean): void {
    const late = this._clock.now() + this._pongTimeout + LATE;
    this._isAsking = true;
    this._ping();
    this._timer._set(this._pongTimeout, () => {
      if (!this._isAsking) this._watch();
      else if (again && this._clock.now() > late) this._ask(false);
      else this._onDead();
    });
  }
}
