// Driver of the TypeScript client: see ../README.md for the line protocol. It runs the built files on
// the WebSocket of npm's `ws`, and plays the page around them.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { Hub as BrowserHub } from "../../typescript/dist/deeperhub.js";
import { Hub } from "../../typescript/dist/deeperhub.node.js";

const WebSocket = createRequire(new URL("../../../tests/peers/package.json", import.meta.url))("ws");

const write = (event, keys) => process.stdout.write(`${JSON.stringify({ event, ...keys })}\n`);

// The page: the client listens to its events as in a browser.
const page = new EventTarget();
globalThis.addEventListener = page.addEventListener.bind(page);
globalThis.removeEventListener = page.removeEventListener.bind(page);
globalThis.document = Object.assign(new EventTarget(), { visibilityState: "visible" });
Object.defineProperty(globalThis, "navigator", { value: { onLine: true }, configurable: true });

function showPage(visibilityState) {
  document.visibilityState = visibilityState;
  document.dispatchEvent(new Event("visibilitychange"));
}

function setOnline(isOnline) {
  navigator.onLine = isOnline;
  page.dispatchEvent(new Event(isOnline ? "online" : "offline"));
}

const saved = new Map();
const storage = {
  getItem: (key) => saved.get(key) ?? null,
  setItem: (key, value) => saved.set(key, value),
  removeItem: (key) => saved.delete(key),
};

let tokens = [];
function nextToken() {
  write("token");
  const token = tokens.length > 1 ? tokens.shift() : tokens[0];
  if (token === null) throw new Error("no token today");
  return token;
}

// One load of the page. After a reload, nothing of the load before works any more.
let load;
function newLoad() {
  const sockets = [];
  const timers = new Set();
  class Socket extends WebSocket {
    constructor(url, protocols) {
      super(url, protocols);
      sockets.push(this);
    }
  }
  const clock = {
    now: () => performance.now(),
    setTimeout(callback, ms) {
      const timer = setTimeout(() => {
        timers.delete(timer);
        callback();
      }, ms);
      timers.add(timer);
      return timer;
    },
    clearTimeout: (timer) => {
      timers.delete(timer);
      clearTimeout(timer);
    },
  };
  const leave = () => {
    page.dispatchEvent(new Event("pagehide"));
    timers.forEach(clearTimeout);
    for (const socket of sockets) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.onerror = () => {};
      socket.terminate();
    }
    current.isLeft = true;
  };
  const current = { Socket, clock, leave, isLeft: false, hub: null, handles: new Map() };
  return current;
}

const OPTIONS = {
  min_delay_ms: "minDelay",
  max_delay_ms: "maxDelay",
  connect_timeout_ms: "connectTimeout",
  pong_timeout_ms: "pongTimeout",
  max_queue_bytes: "maxQueueBytes",
  max_pending_bytes: "maxPendingBytes",
  request_timeout_ms: "requestTimeout",
  publish_timeout_ms: "publishTimeout",
};

function connect({ url, options = {} }) {
  load = newLoad();
  const current = load;
  const given = { WebSocket: load.Socket, clock: load.clock };
  for (const [key, name] of Object.entries(OPTIONS))
    if (options[key] !== undefined) given[name] = options[key];
  if (options.token !== undefined) given.token = options.token;
  if (options.tokens) {
    tokens = options.tokens;
    given.token = nextToken;
  }
  if (options.storage) given.storage = storage;
  load.hub = new (options.blind ? BrowserHub : Hub)(url, given);
  load.hub.on("state", ({ state, until, reason }) => {
    if (current.isLeft) return;
    const wait =
      state === "waiting" ? { wait_ms: until === undefined ? 0 : Math.max(0, until - Date.now()) } : {};
    write("state", { state, reason, ...wait });
  });
  load.hub.on("error", ({ code, message }) => {
    if (!current.isLeft) write("error", { code, message });
  });
}

// `hold` keeps the handler of each message until `release`; `fail` lets it throw.
function subscribe({ as, topic, history, fail = [], hold = false }) {
  const current = load;
  const handle = load.hub.subscribe(topic, history === undefined ? {} : { history });
  const held = { handle, hold, allowed: 0, wake: null };
  load.handles.set(as, held);
  let number = 0;
  handle.on("state", ({ state, recovered, reason }) => {
    if (!current.isLeft) write("subscription", { as, state, recovered, reason });
  });
  handle.on("gap", ({ from, to, reason }) => write("gap", { as, from, to, reason }));
  handle.on("message", async ({ topic: name, message, from, time, epoch, offset }) => {
    if (current.isLeft) return;
    number += 1;
    write("message", { as, topic: name, message, from, time, epoch, offset });
    if (fail.includes(offset ?? number)) throw new Error(`message ${number} is not liked`);
    while (held.hold && held.allowed === 0)
      await new Promise((resolve) => {
        held.wake = resolve;
      });
    if (held.hold) held.allowed -= 1;
  });
  handle.ready.then(
    () => {
      if (!current.isLeft) write("ready", { as });
    },
    (error) => write("ready", { as, error: error.code }),
  );
}

function release({ as, messages }) {
  const held = load.handles.get(as);
  if (messages === undefined) held.hold = false;
  else held.allowed += messages;
  held.wake?.();
}

function result(as, promise) {
  promise.then(
    (value) => write("result", { as, value }),
    ({ code, message }) => write("result", { as, error: code ?? message }),
  );
}

const COMMANDS = {
  connect,
  subscribe,
  release,
  unsubscribe: ({ as }) => load.handles.get(as).handle.unsubscribe(),
  publish: ({ as, topic, message, exclude_self: excludeSelf = false, ordered = true }) =>
    result(as, load.hub.publish(topic, message, { excludeSelf, ordered })),
  echo: ({ as, data }) => result(as, load.hub.echo(data)),
  history: ({ as, topic, from, limit, order }) => {
    const options = Object.entries({ from, limit, order }).filter(([, value]) => value !== undefined);
    result(as, load.hub.history(topic, Object.fromEntries(options)));
  },
  token: (command) => {
    tokens = command.tokens ?? [null];
  },
  reload: () => load.leave(),
  hide: () => showPage("hidden"),
  show: () => showPage("visible"),
  offline: () => setOnline(false),
  online: () => setOnline(true),
  close: () => load.hub.close().then(() => write("closed")),
};

write("ready", { client: "typescript", skips: [] });
const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const command = JSON.parse(line);
  const run = COMMANDS[command.do];
  if (run) run(command);
  else write("unsupported", { do: command.do });
});
lines.on("close", () => process.exit(0));
