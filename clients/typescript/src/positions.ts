import type { Clock, Position, PositionStorage } from "./index.js";
import { Timer } from "./clock.js";
import { covers } from "./frames.js";
import type { Handle } from "./handle.js";

/** Time between two writes to the storage. */
const SAVE_EVERY = 250;

/** Keeps positions over a reload of the page. */
export class Positions {
  readonly _prefix: string;
  readonly _storage: PositionStorage | undefined;
  readonly _timer: Timer;
  readonly _changed = new Map<string, Handle>();

  constructor(url: string, storage: PositionStorage | undefined, clock: Clock) {
    this._prefix = `deeperhub:${url}:`;
    this._storage = storage;
    this._timer = new Timer(clock);
  }

  _load(topic: string): Position | undefined {
    try {
      const { epoch, offset, time } = JSON.parse(
        this._storage?.getItem(this._prefix + topic) ?? "",
      ) as Position;
      return typeof epoch === "string" && typeof offset === "number" ? { epoch, offset, time } : undefined;
    } catch {
      return undefined;
    }
  }

  /** Notes that a handle's position has moved. */
  _onPosition(handle: Handle): void {
    if (!this._storage) return;
    if (!this._changed.size) this._timer._set(SAVE_EVERY, () => this._save());
    this._changed.set(handle.topic, handle);
  }

  _save(): void {
    this._timer._clear();
    for (const [topic, handle] of this._changed) {
      // Several handles share a key: the slowest one decides.
      const positions = [handle, ...handle._topic._handles].map((other) => other._processed);
      const slowest = positions.reduce((a, b) => (b && covers(a, b) ? b : a));
      try {
        this._storage?.setItem(this._prefix + topic, JSON.stringify(slowest));
      } catch {
        // A full storage costs the position, not the messages.
      }
    }
    this._changed.clear();
  }

  _remove(topic: string): void {
    this._changed.delete(topic);
    try {
      this._storage?.removeItem(this._prefix + topic);
    } catch {
      // As above.
    }
  }
}
