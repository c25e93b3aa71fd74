// Repeated calls that stop while nobody looks.

import { ApiError, session } from "./api.js";

const MAX_PAUSE_MS = 60_000;
/** Pause before a stream that ended is opened again. */
const RETRY_MS = 3000;

/** Waits for a time, or until the signal aborts. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
  });
}

/** Waits for an event of a target, or until the signal aborts. */
function next(target, type, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      target.removeEventListener(type, done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    target.addEventListener(type, done);
    signal.addEventListener("abort", done);
  });
}

/** Waits while the page is hidden. */
export async function whileHidden(signal) {
  while (document.hidden && !signal.aborted) await next(document, "visibilitychange", signal);
}

/** Runs a task whose signal also aborts when the page is hidden. Resolves to whether it aborted. */
export async function runVisible(task, signal) {
  const visible = new AbortController();
  const stop = () => visible.abort();
  const onVisibility = () => document.hidden && stop();
  document.addEventListener("visibilitychange", onVisibility);
  signal.addEventListener("abort", stop);
  try {
    await task(visible.signal);
  } finally {
    document.removeEventListener("visibilitychange", onVisibility);
    signal.removeEventListener("abort", stop);
  }
  return visible.signal.aborted;
}

/**
 * Reads a stream again and again until the signal aborts. It ends while the page is hidden.
 * `read` gets a signal, and `say` a text about the state.
 */
export async function follow(read, { signal, say }) {
  while (!signal.aborted) {
    await whileHidden(signal);
    const attempt = async (visible) => {
      try {
        await read(visible);
        say("the server ended the stream");
      } catch (error) {
        say(
          visible.aborted
            ? "stopped while the page is hidden"
            : error instanceof ApiError
              ? error.message
              : "the connection was lost",
        );
      }
    };
    const wasHidden = await runVisible(attempt, signal);
    if (!wasHidden) await sleep(RETRY_MS * (0.75 + Math.random() / 2), signal);
  }
}

/**
 * Runs a task again and again until the signal aborts: after `interval` if it succeeded, and after
 * growing pauses if it failed. A hidden page pauses, and so does one that waits for the key.
 * `onFailure` gets each error with the milliseconds to the next attempt.
 */
export async function poll(task, { interval = 5000, signal, onFailure = () => {} }) {
  let failures = 0;
  while (!signal.aborted) {
    await whileHidden(signal);
    if (signal.aborted) return;
    let pause = interval;
    try {
      await task();
      failures = 0;
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      failures += 1;
      // Several pages must not come back at the same moment.
      const backoff = Math.min(interval * 2 ** (failures - 1), MAX_PAUSE_MS) * (0.75 + Math.random() / 2);
      pause = Math.max(backoff, error.retryAfterMs);
      onFailure(error, pause);
      if (error.status === 401) {
        await next(session, "authorized", signal);
        continue;
      }
    }
    await sleep(pause, signal);
  }
}
