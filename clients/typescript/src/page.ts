/** What is told about the page and the network. */
export interface PageEvents {
  _onShown(): void;
  _onOffline(): void;
  _onOnline(): void;
}

export function isHidden(): boolean {
  return typeof document === "object" && document.visibilityState === "hidden";
}

export function isOffline(): boolean {
  return typeof navigator === "object" && navigator.onLine === false;
}

/** Reports events of the page until the returned function is called. Outside browsers there are none. */
export function watchPage(events: PageEvents, onHidden: () => void): () => void {
  const undo: (() => void)[] = [];
  const listen = (target: EventTarget | undefined, name: string, listener: () => void): void => {
    if (!target || !target.addEventListener) return;
    target.addEventListener(name, listener);
    undo.push(() => target.removeEventListener(name, listener));
  };
  listen(globalThis.document, "visibilitychange", () => (isHidden() ? onHidden() : events._onShown()));
  listen(globalThis, "pagehide", onHidden);
  listen(globalThis, "offline", () => events._onOffline());
  listen(globalThis, "online", () => events._onOnline());
  return () => undo.forEach((remove) => remove());
}
