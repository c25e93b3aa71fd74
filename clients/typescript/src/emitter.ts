type Listener<T> = (event: T) => unknown;

/** Typed listeners. Names of its own members start with `_`, as they are shortened in the built file. */
export abstract class Emitter<Events extends object> {
  readonly _listeners = new Map<keyof Events, Listener<never>[]>();

  /** Reports that a listener of an event threw, or that its promise was rejected. */
  abstract _onListenerError(error: unknown, event?: keyof Events): void;

  on<K extends keyof Events>(event: K, listener: Listener<Events[K]>): () => void {
    this._listeners.set(event, [...(this._listeners.get(event) || []), listener]);
    return () => this.off(event, listener);
  }

  off<K extends keyof Events>(event: K, listener: Listener<Events[K]>): void {
    const others = this._of(event).filter((other) => other !== listener);
    this._listeners.set(event, others);
  }

  _of<K extends keyof Events>(event: K): Listener<Events[K]>[] {
    return (this._listeners.get(event) || []) as Listener<Events[K]>[];
  }

  /** Calls the listeners one after the other, the first one at once. The promise resolves when theirs did. */
  async _emit<K extends keyof Events>(name: K, event: Events[K]): Promise<void> {
    for (const listener of this._of(name)) {
      try {
        await listener(event);
      } catch (error) {
        this._onListenerError(error, name);
      }
    }
  }
}
