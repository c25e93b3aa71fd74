// Calls of the server API. The key exists only in this module's memory.

const BASE = new URL(".", document.baseURI);

let key = null;

/** Tells `unauthorized` when a call lacks a good key, `authorized` when one was given. */
export const session = new EventTarget();

export class ApiError extends Error {
  constructor(message, { status = 0, code = "", retryAfterMs = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

export function hasKey() {
  return key !== null;
}

export function setKey(text) {
  key = text;
  session.dispatchEvent(new Event(text === null ? "unauthorized" : "authorized"));
}

/** Returns the path of a call, with each value as one percent-encoded segment. */
export function path(strings, ...values) {
  return strings.reduce((whole, part, index) => {
    const value = String(values[index - 1]);
    // URLs drop these segments, even percent-encoded ones. The call would be another one.
    if (value === "." || value === "..") throw new ApiError(`no call can name "${value}"`);
    return whole + encodeURIComponent(value) + part;
  });
}

/** Returns the query of a URL; values that are empty, null or undefined are left out. */
export function query(values) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "") parameters.set(name, value);
  }
  const text = parameters.toString();
  return text && `?${text}`;
}

async function request(method, callPath, { body, headers = {}, signal } = {}) {
  const authorization = key === null ? {} : { authorization: `Bearer ${key}` };
  let response;
  try {
    response = await fetch(new URL(callPath, BASE), {
      method,
      body,
      signal,
      cache: "no-store",
      credentials: "omit",
      headers: { ...headers, ...authorization },
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("the server does not answer");
  }
  if (response.status === 401) {
    // A key that is refused is wrong, or was changed.
    setKey(null);
  }
  return response;
}

/** Makes a call. Returns its status and the text of its answer, also if that is an error. */
export async function call(method, callPath, options) {
  const response = await request(method, callPath, options);
  return { status: response.status, text: await response.text() };
}

/** Makes a call and returns its answer. Throws an `ApiError` unless the call succeeded. */
export async function read(callPath, { method = "GET", ...options } = {}) {
  const response = await request(method, callPath, options);
  if (!response.ok) throw await errorOf(response);
  const text = await response.text();
  return response.headers.get("content-type")?.startsWith("application/json") ? JSON.parse(text) : text;
}

async function errorOf(response) {
  const retryAfterMs = 1000 * (Number(response.headers.get("retry-after")) || 0);
  const about = { status: response.status, retryAfterMs };
  try {
    const { error } = JSON.parse(await response.text());
    return new ApiError(error.message, { ...about, code: error.code });
  } catch {
    return new ApiError(`the server answered ${response.status}`, about);
  }
}

/**
 * Reads server-sent events until the stream ends. `EventSource` cannot send a key, so this reads the
 * body itself. `onEvent` gets `{event, id, data}`.
 */
export async function readEvents(callPath, { onOpen, onEvent, ...options }) {
  const response = await request("GET", callPath, options);
  if (!response.ok) throw await errorOf(response);
  onOpen?.();
  let rest = "";
  let event = {};
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) event = takeLine(line, event, onEvent);
  }
}

/** Adds a line to an event; an empty line ends it. Returns the event that the next line belongs to. */
function takeLine(line, event, onEvent) {
  if (line === "") {
    if (event.data !== undefined || event.id !== undefined) onEvent({ event: "message", ...event });
    return {};
  }
  const colon = line.indexOf(":");
  if (colon === 0) return event;
  const fieldName = colon < 0 ? line : line.slice(0, colon);
  const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
  if (fieldName === "data") {
    return { ...event, data: event.data === undefined ? value : `${event.data}\n${value}` };
  }
  return fieldName === "event" || fieldName === "id" ? { ...event, [fieldName]: value } : event;
}
