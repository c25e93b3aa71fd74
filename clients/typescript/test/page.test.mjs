import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { position, settle, start, URL } from "./support.mjs";

const original = Object.getOwnPropertyDescriptor(globalThis, "navigator");
let page;

beforeEach(() => {
  page = new EventTarget();
  globalThis.addEventListener = page.addEventListener.bind(page);
  globalThis.removeEventListener = page.removeEventListener.bind(page);
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  Object.defineProperty(globalThis, "navigator", { value: { onLine: true }, configurable: true });
});

afterEach(() => {
  for (const name of ["addEventListener", "removeEventListener", "document", "navigator"])
    delete globalThis[name];
  if (original) Object.defineProperty(globalThis, "navigator", original);
});

async function show(visibilityState) {
  document.visibilityState = visibilityState;
  document.dispatchEvent(new Event("visibilitychange"));
  await settle();
}

async function network(onLine) {
  navigator.onLine = onLine;
  page.dispatchEvent(new Event(onLine ? "online" : "offline"));
  await settle();
}

function fakeStorage(entries = {}) {
  const map = new Map(Object.entries(entries));
  const writes = [];
  return {
    map,
    writes,
    getItem: (key) => map.get(key) ?? null,
    setItem: (key, value) => {
      writes.push(value);
      map.set(key, value);
    },
    removeItem: (key) => map.delete(key),
  };
}

test("a hidden page connects when it is shown", async () => {
  const app = start();
  const socket = await app.open();
  await show("hidden");
  await socket.cut();
  await app.clock.advance(60_000);
  assert.equal(app.sockets.length, 1);
  assert.equal(app.hub.state.state, "waiting");
  await show("visible");
  assert.equal(app.sockets.length, 2);
});

test("a page that is shown before its time keeps it", async () => {
  const app = start();
  const socket = await app.open();
  await show("hidden");
  socket.receive("goodbye", { code: 1001, reason: "restart", reconnect: true, retry_after_ms: 5000 });
  await socket.cut(1001);
  await show("visible");
  assert.equal(app.sockets.length, 1);
  await app.clock.advance(5000);
  assert.equal(app.sockets.length, 2);
});

test("a page that was hidden asks at once whether the server is there", async () => {
  const app = start();
  await app.open();
  await show("hidden");
  await show("visible");
  assert.equal(app.socket.take("ping").length, 1);
  await app.clock.advance(10_000);
  assert.equal(app.sockets.length, 2);
});

test("an attempt that is due at once waits for a hidden page too", async () => {
  const app = start();
  await app.open();
  await app.clock.advance(10_000);
  await show("hidden");
  await app.socket.cut(4200, "no sign of life");
  assert.deepEqual(app.seen.states.at(-1).state, "waiting");
  await show("visible");
  assert.equal(app.sockets.length, 2);
});

test("an offline browser closes the connection and comes back at once", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  await network(false);
  assert.equal(socket.closedWith, 1005);
  assert.deepEqual(app.seen.states.at(-1), { state: "waiting", reason: "offline" });
  await app.clock.advance(60_000);
  assert.equal(app.sockets.length, 1);
  await network(true);
  assert.equal(app.sockets.length, 2);
  const next = await app.open();
  await next.subscribed({ ...position(10), recovered: true });
  assert.deepEqual(events, ["recovering", "live true"]);
});

test("online ends a backoff, but not a time from the server", async () => {
  const app = start();
  await settle();
  await app.socket.cut();
  await network(true);
  assert.equal(app.sockets.length, 2);
  const socket = await app.open();
  socket.receive("goodbye", { code: 1001, reason: "restart", reconnect: true, retry_after_ms: 5000 });
  await socket.cut(1001);
  await network(false);
  await app.clock.advance(1000);
  await network(true);
  assert.equal(app.sockets.length, 2);
  await app.clock.advance(4000);
  assert.equal(app.sockets.length, 3);
});

test("an attempt that fails while offline waits for the network", async () => {
  navigator.onLine = false;
  const app = start();
  await settle();
  await app.socket.cut();
  assert.deepEqual(app.seen.states.at(-1), { state: "waiting", reason: "offline" });
  await network(true);
  assert.equal(app.sockets.length, 2);
});

test("positions of messages that were handed over are saved every 250 ms", async () => {
  const storage = fakeStorage();
  const app = start({ storage });
  const { handle, socket } = await app.live(10);
  assert.deepEqual(storage.writes, []);
  for (const offset of [11, 12, 13]) socket.deliver("chat.1", offset);
  await app.clock.advance(249);
  assert.deepEqual(storage.writes, []);
  await app.clock.advance(1);
  assert.deepEqual(
    storage.writes.map((text) => JSON.parse(text)),
    [position(13)],
  );
  assert.deepEqual([...storage.map.keys()], [`deeperhub:${URL}:chat.1`]);
  handle.unsubscribe();
  assert.equal(storage.map.size, 0);
});

test("a page that is hidden saves at once, and only what was processed", async () => {
  const storage = fakeStorage();
  const app = start({ storage });
  const handle = app.hub.subscribe("chat.1");
  handle.on("message", ({ offset }) => (offset === 12 ? new Promise(() => {}) : undefined));
  const socket = await app.open();
  await socket.subscribed(position(10));
  for (const offset of [11, 12, 13]) socket.deliver("chat.1", offset);
  await settle();
  page.dispatchEvent(new Event("pagehide"));
  assert.deepEqual(
    storage.writes.map((text) => JSON.parse(text)),
    [position(11)],
  );
});

test("of two handles the slower one decides the saved position", async () => {
  const storage = fakeStorage();
  const app = start({ storage });
  const { socket } = await app.live(10);
  const slow = app.hub.subscribe("chat.1");
  slow.on("message", ({ offset }) => (offset === 12 ? new Promise(() => {}) : undefined));
  for (const offset of [11, 12, 13]) socket.deliver("chat.1", offset);
  await app.clock.advance(250);
  assert.equal(JSON.parse(storage.writes.at(-1)).offset, 11);
});

test("the first subscribe starts from the saved position", async () => {
  const storage = fakeStorage({ [`deeperhub:${URL}:chat.1`]: JSON.stringify(position(20)) });
  const app = start({ storage });
  const { events } = app.subscribe("chat.1", { history: 5 });
  const socket = await app.open();
  const data = await socket.subscribed({ ...position(20), recovered: true, replay: 1 });
  assert.deepEqual(data, { topic: "chat.1", recover: position(20), history: 5 });
  socket.deliver("chat.1", 21);
  await settle();
  assert.deepEqual(events, [21, "live true"]);
});

test("a saved position that is broken, and a storage that fails, cost nothing else", async () => {
  const storage = fakeStorage({ [`deeperhub:${URL}:chat.1`]: "{" });
  storage.setItem = () => {
    throw new Error("quota");
  };
  storage.removeItem = () => {
    throw new Error("denied");
  };
  const app = start({ storage });
  const { handle, events } = app.subscribe("chat.1");
  const socket = await app.open();
  assert.deepEqual(await socket.subscribed(position(10)), { topic: "chat.1" });
  socket.deliver("chat.1", 11);
  await app.clock.advance(250);
  handle.unsubscribe();
  assert.deepEqual(events, ["live", 11, "ended unsubscribed"]);
});

test("a hub that is closed listens to the page no more", async () => {
  const app = start();
  await app.open();
  void app.hub.close();
  await network(false);
  await network(true);
  await show("visible");
  assert.equal(app.sockets.length, 1);
  assert.deepEqual(app.seen.states.at(-1), { state: "closed", reason: "closed" });
});
