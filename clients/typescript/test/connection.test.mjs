import assert from "node:assert/strict";
import { test } from "node:test";
import { Hub, HubError } from "../dist/deeperhub.js";
import { fixRandom, settle, start } from "./support.mjs";

const names = ({ seen }) => seen.states.map(({ state }) => state);
const lastWait = ({ seen }) => seen.states.at(-1).until - Date.now();
const isAbout = (actual, expected) =>
  assert.ok(Math.abs(actual - expected) < 500, `${actual} is not about ${expected}`);

test("the hub is open after welcome", async () => {
  const app = start();
  await settle();
  assert.deepEqual(names(app), ["connecting"]);
  assert.deepEqual(app.socket.protocols, ["deeperhub.v1.json"]);
  assert.equal(app.hub.clientId, undefined);
  await app.socket.welcome();
  assert.deepEqual(names(app), ["connecting", "open"]);
  assert.equal(app.hub.clientId, "n1.0-1-1");
});

test("a wrong URL and a missing WebSocket throw at once", () => {
  assert.throws(() => new Hub("no url", { WebSocket: class {} }), TypeError);
  const original = globalThis.WebSocket;
  delete globalThis.WebSocket;
  try {
    assert.throws(() => new Hub("ws://hub.test/"), /pass the option WebSocket/);
  } finally {
    if (original) globalThis.WebSocket = original;
  }
});

test("an https URL becomes a wss URL", async () => {
  const app = start();
  await settle();
  const urls = [];
  const hub = new Hub("https://hub.test/ws", {
    WebSocket: class {
      constructor(url) {
        urls.push(url);
      }
      close() {}
    },
    clock: app.clock,
  });
  await settle();
  assert.deepEqual(urls, ["wss://hub.test/ws"]);
  void hub.close();
});

test("the backoff grows to its limit", async (t) => {
  fixRandom(t, 1);
  const app = start();
  await settle();
  for (const expected of [1000, 2000, 4000, 8000, 16_000, 20_000, 20_000]) {
    await app.socket.cut();
    assert.equal(app.seen.states.at(-1).state, "waiting");
    isAbout(lastWait(app), expected);
    const attempts = app.sockets.length;
    await app.clock.advance(expected - 1);
    assert.equal(app.sockets.length, attempts);
    await app.clock.advance(1);
    assert.equal(app.sockets.length, attempts + 1);
  }
});

test("the backoff has a lower limit from the second attempt on", async (t) => {
  fixRandom(t, 0);
  const app = start({ minDelay: 700 });
  await settle();
  for (const expected of [0, 700, 700]) {
    await app.socket.cut();
    isAbout(lastWait(app), expected);
    await app.clock.advance(expected);
  }
  assert.equal(app.sockets.length, 4);
});

test("a connection that was open for ten seconds resets the backoff", async (t) => {
  fixRandom(t, 1);
  const app = start();
  await settle();
  for (const wait of [1000, 2000]) {
    await app.socket.cut();
    await app.clock.advance(wait);
  }
  await app.open();
  await app.clock.advance(9999);
  await app.socket.cut();
  isAbout(lastWait(app), 4000);
  await app.clock.advance(4000);
  await app.open();
  await app.clock.advance(10_000);
  await app.socket.cut();
  isAbout(lastWait(app), 1000);
});

test("an attempt without welcome fails after ten seconds", async () => {
  const app = start();
  await app.clock.advance(9999);
  assert.deepEqual(names(app), ["connecting"]);
  await app.clock.advance(1);
  assert.deepEqual(names(app), ["connecting", "waiting"]);
  assert.equal(app.sockets[0].closedWith, 1005);
});

test("a slot of goodbye is kept to the millisecond", async () => {
  const app = start();
  const socket = await app.open();
  socket.receive("goodbye", { code: 1001, reason: "going away", reconnect: true, retry_after_ms: 7123 });
  await socket.cut(1001);
  assert.equal(app.seen.states.at(-1).reason, "going away");
  await app.clock.advance(7122);
  assert.equal(app.sockets.length, 1);
  await app.clock.advance(1);
  assert.equal(app.sockets.length, 2);
});

test("a slot beyond the longest timer is cut", async () => {
  const app = start();
  const socket = await app.open();
  socket.receive("goodbye", { code: 1001, reason: "later", reconnect: true, retry_after_ms: 2 ** 40 });
  await socket.cut(1001);
  await app.clock.advance(2 ** 31 - 1);
  assert.equal(app.sockets.length, 2);
});

for (const [code, goodbye] of [
  [1002],
  [1007],
  [1009],
  [4003],
  [4099],
  [4003, { reconnect: false }],
  [1001, { reconnect: false }],
]) {
  test(`code ${code} ${goodbye ? "with goodbye " : ""}ends the hub`, async () => {
    const app = start();
    const socket = await app.open();
    if (goodbye) socket.receive("goodbye", { code, reason: "told", ...goodbye });
    await socket.cut(code, "from the frame");
    assert.deepEqual(app.seen.states.at(-1), {
      state: "closed",
      reason: goodbye ? "told" : "from the frame",
    });
    await app.clock.advance(60_000);
    assert.equal(app.sockets.length, 1);
  });
}

test("code 4200 reconnects at once after ten seconds, and with a backoff before", async (t) => {
  fixRandom(t, 1);
  const app = start();
  await app.open();
  await app.clock.advance(10_000);
  await app.socket.cut(4200);
  assert.equal(app.sockets.length, 2);
  await app.open();
  await app.clock.advance(9999);
  await app.socket.cut(4200);
  assert.equal(app.sockets.length, 2);
  isAbout(lastWait(app), 1000);
});

test("silence is answered with a ping, and then with a new connection", async () => {
  const app = start();
  await app.open();
  await app.clock.advance(37_499);
  assert.deepEqual(app.socket.take("ping"), []);
  await app.clock.advance(1);
  assert.equal(app.socket.take("ping").length, 1);
  await app.clock.advance(9999);
  assert.equal(app.sockets.length, 1);
  await app.clock.advance(1);
  assert.equal(app.sockets.length, 2);
});

test("any frame is a sign of life", async () => {
  const app = start();
  await app.open({ ping_interval_ms: 0 });
  await app.clock.advance(20_000);
  app.socket.receive("anything");
  await app.clock.advance(24_999);
  assert.deepEqual(app.socket.take("ping"), []);
  await app.clock.advance(1);
  assert.equal(app.socket.take("ping").length, 1);
  app.socket.receive("pong");
  await app.clock.advance(24_000);
  assert.equal(app.sockets.length, 1);
});

test("a timer that is late after a sleep asks again before it gives up", async () => {
  const app = start();
  await app.open();
  await app.clock.advance(37_500);
  assert.equal(app.socket.take("ping").length, 1);
  await app.clock.sleep(3_600_000);
  assert.equal(app.socket.take("ping").length, 1);
  assert.equal(app.sockets.length, 1);
  app.socket.receive("pong");
  await app.clock.advance(10_000);
  assert.equal(app.sockets.length, 1);
});

test("a server that is gone after a sleep is given up", async () => {
  const app = start();
  await app.open();
  await app.clock.sleep(3_600_000);
  assert.equal(app.socket.take("ping").length, 1);
  await app.clock.advance(10_000);
  assert.equal(app.sockets.length, 2);
});

test("close resolves when the socket is closed", async () => {
  const app = start();
  const socket = await app.open();
  let isClosed = false;
  const closing = app.hub.close().then(() => {
    isClosed = true;
  });
  await settle();
  assert.equal(socket.closedWith, 1000);
  assert.deepEqual(app.seen.states.at(-1), { state: "closed", reason: "closed" });
  assert.equal(isClosed, false);
  await socket.cut(1000);
  await closing;
  assert.equal(app.clock.timers.size, 0);
});

test("close while connecting and while waiting ends everything", async () => {
  const connecting = start();
  await settle();
  const closing = connecting.hub.close();
  await connecting.socket.cut();
  await closing;
  const waiting = start();
  await settle();
  await waiting.socket.cut();
  await waiting.hub.close();
  await waiting.clock.advance(60_000);
  assert.equal(waiting.sockets.length, 1);
  assert.equal(waiting.clock.timers.size, 0);
});

test("close does not wait for a server that does not answer", async () => {
  const app = start();
  await app.open();
  const closing = app.hub.close();
  await app.clock.advance(10_000);
  await closing;
});

test("close before the first attempt connects nowhere", async () => {
  const app = start();
  await app.hub.close();
  await settle();
  assert.equal(app.sockets.length, 0);
});

test("a constructor that throws counts as a failed attempt", async () => {
  let calls = 0;
  class WebSocket {
    constructor() {
      calls += 1;
      throw new Error("not allowed here");
    }
  }
  const app = start({ WebSocket });
  await settle();
  assert.equal(app.seen.states.at(-1).reason, "Error: not allowed here");
  await app.clock.advance(60_000);
  assert.ok(calls > 2);
});

test("frames that are no messages are ignored", async () => {
  const app = start();
  const socket = await app.open();
  for (const data of ["", "{", "null", "7", "[]", "{}", '{"type":5}', new ArrayBuffer(4)])
    socket.onmessage({ data });
  assert.deepEqual(app.seen.errors, []);
  assert.equal(app.hub.state.state, "open");
});

test("messages of a backend reach the application", async () => {
  const app = start();
  const socket = await app.open();
  socket.receive("invoice.paid", { number: 7 });
  assert.deepEqual(app.seen.messages, [{ type: "invoice.paid", data: { number: 7 } }]);
});

test("an error without an id is reported", async () => {
  const app = start();
  const socket = await app.open();
  socket.receive("error", { code: "rate_limited", message: "too fast", retry_after_ms: 20 });
  const [error] = app.seen.errors;
  assert.ok(error instanceof HubError && error instanceof Error);
  assert.deepEqual([error.code, error.message, error.retryAfterMs], ["rate_limited", "too fast", 20]);
});

test("a listener that fails costs only its own call", async () => {
  const app = start();
  app.hub.on("state", () => {
    throw new Error("oops");
  });
  app.hub.on("state", async () => {
    throw new Error("oops later");
  });
  await app.open();
  await settle();
  assert.deepEqual(
    app.seen.errors.map(({ code }) => code),
    ["handler_failed", "handler_failed", "handler_failed", "handler_failed"],
  );
  assert.equal(app.hub.state.state, "open");
});

test("off and the function that on returns remove a listener", async () => {
  const app = start();
  const seen = [];
  const first = () => seen.push("first");
  app.hub.on("state", first);
  const undo = app.hub.on("state", () => seen.push("second"));
  app.hub.off("state", first);
  undo();
  await app.open();
  assert.deepEqual(seen, []);
});

test("echo waits for the connection and is sent again after a reconnect", async () => {
  const app = start();
  const answer = app.hub.echo({ any: 1 });
  let socket = await app.open();
  assert.equal(socket.take("echo").length, 1);
  await socket.cut();
  await app.clock.advance(1000);
  socket = await app.open();
  const [echo] = socket.take("echo");
  socket.receive("echo", echo.data, echo.id);
  assert.deepEqual(await answer, { any: 1 });
});

test("echo and history fail after 30 s, with the server's error, and if they are too long", async () => {
  const app = start();
  const late = assert.rejects(app.hub.echo(1), { code: "timeout" });
  await app.clock.advance(30_000);
  await late;
  const socket = await app.open({ max_message_bytes: 100 });
  const refused = assert.rejects(app.hub.history("a", { from: -10 }), { code: "forbidden" });
  await settle();
  const [history] = socket.take("history");
  assert.deepEqual(history.data, { topic: "a", from: -10 });
  socket.receive("error", { code: "forbidden", message: "no" }, history.id);
  await refused;
  await assert.rejects(app.hub.echo("x".repeat(100)), { code: "message_too_large" });
  assert.deepEqual(socket.take("echo"), []);
});
