import assert from "node:assert/strict";
import { test } from "node:test";
import { note, position, settle, start } from "./support.mjs";

test("a slow handler gets one message at a time, and unsubscribe drops the others", async () => {
  const app = start();
  const handle = app.hub.subscribe("chat.1");
  const releases = [];
  const events = note(handle, () => new Promise((resolve) => releases.push(resolve)));
  const socket = await app.open();
  await socket.subscribed(position(0));
  for (const offset of [1, 2, 3]) socket.deliver("chat.1", offset);
  await settle();
  assert.deepEqual(events, ["live", 1]);
  releases.shift()();
  await settle();
  assert.deepEqual(events, ["live", 1, 2]);
  handle.unsubscribe();
  releases.shift()();
  await settle();
  assert.deepEqual(events, ["live", 1, 2, "ended unsubscribed"]);
});

test("a handler that fails costs only its own call", async () => {
  const app = start();
  const handle = app.hub.subscribe("chat.1");
  const events = note(handle, async ({ offset }) => {
    if (offset === 1) throw new Error("dislike");
  });
  const socket = await app.open();
  await socket.subscribed(position(0));
  socket.deliver("chat.1", 1);
  socket.deliver("chat.1", 2);
  await settle();
  assert.deepEqual(events, ["live", 1, 2]);
  assert.deepEqual(
    app.seen.errors.map(({ code }) => code),
    ["handler_failed"],
  );
});

test("a full queue of a topic with history is filled again from the history", async () => {
  const app = start({ maxQueueBytes: 600 });
  const handle = app.hub.subscribe("chat.1");
  const releases = [];
  const events = note(handle, () => new Promise((resolve) => releases.push(resolve)));
  const fast = app.subscribe("chat.1");
  const socket = await app.open();
  await socket.subscribed(position(0));
  for (let offset = 1; offset <= 10; offset += 1) socket.deliver("chat.1", offset);
  await settle();
  let recover;
  for (let count = 0; count < 30; count += 1) {
    releases.shift()?.();
    await settle();
    if (!recover && socket.sent.some(({ type }) => type === "subscribe")) {
      assert.equal(socket.take("unsubscribe").length, 1);
      ({ recover } = await socket.subscribed({ ...position(4), recovered: true, replay: 6 }));
      for (let offset = recover.offset + 1; offset <= 10; offset += 1) socket.deliver("chat.1", offset);
    } else if (socket.sent.some(({ type }) => type === "subscribe")) {
      const { recover: next } = await socket.subscribed({ ...position(recover.offset), recovered: true });
      for (let offset = next.offset + 1; offset <= 10; offset += 1) socket.deliver("chat.1", offset);
    }
  }
  assert.ok(recover.offset > 1 && recover.offset < 10);
  assert.deepEqual(events.filter(Number.isInteger), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.deepEqual(fast.events.filter(Number.isInteger), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.ok(!events.some((event) => String(event).startsWith("gap")));
});

test("messages that a pattern drops are told as one gap in their place", async () => {
  const app = start({ maxQueueBytes: 300 });
  const handle = app.hub.subscribe("chat.>");
  const releases = [];
  const events = note(handle, () => new Promise((resolve) => releases.push(resolve)));
  const socket = await app.open();
  await socket.subscribed();
  for (let offset = 1; offset <= 6; offset += 1) socket.deliver("chat.1", offset);
  await settle();
  while (releases.length) {
    releases.shift()();
    await settle();
  }
  socket.deliver("chat.1", 7);
  await settle();
  assert.deepEqual(events, ["live", 1, 2, "gap dropped", 7]);
});

test("the iterator yields each message and ends with the subscription", async () => {
  const app = start();
  const handle = app.hub.subscribe("chat.1");
  const events = [];
  handle.on("gap", ({ reason }) => events.push(reason));
  const loop = (async () => {
    for await (const { offset } of handle) events.push(offset);
    events.push("end");
  })();
  const socket = await app.open();
  await socket.subscribed(position(0));
  socket.deliver("chat.1", 1);
  socket.receive("gap", { topic: "chat.1", ...position(3), from: 2, to: 3, reason: "trimmed" });
  socket.deliver("chat.1", 4);
  socket.receive("unsubscribed", { topic: "chat.1" });
  await loop;
  assert.deepEqual(events, [1, "trimmed", 4, "end"]);
  for await (const message of handle) assert.fail(message);
});

test("leaving the loop stops the iterator, and unsubscribe ends a loop that waits", async () => {
  const app = start();
  const { handle, socket } = await app.live(0);
  socket.deliver("chat.1", 1);
  socket.deliver("chat.1", 2);
  for await (const { offset } of handle) {
    assert.equal(offset, 1);
    break;
  }
  const other = app.hub.subscribe("chat.1");
  const iterator = other[Symbol.asyncIterator]();
  const next = iterator.next();
  other.unsubscribe();
  assert.deepEqual(await next, { done: true, value: undefined });
  assert.deepEqual(await iterator.next(), { done: true, value: undefined });
});

test("close ends subscriptions at once, and later ones at their start", async () => {
  const app = start();
  const { handle, events, socket } = await app.live(10);
  const waiting = app.subscribe("later");
  void app.hub.close();
  socket.deliver("chat.1", 11);
  await assert.rejects(waiting.handle.ready, { code: "closed" });
  const afterwards = app.subscribe("chat.1");
  await assert.rejects(afterwards.handle.ready, { code: "closed" });
  await settle();
  assert.deepEqual(
    [events, waiting.events, afterwards.events],
    [["ended closed"], ["ended closed"], ["ended closed"]],
  );
  assert.deepEqual(handle.state, { state: "ended", reason: "closed" });
});

test("presence is joined with the subscribe and told to its handles", async () => {
  const app = start();
  const { handle, socket } = await app.live(10, "chat.1", { presence: true });
  const seen = [];
  handle.on("presence", (presence) => seen.push(presence));
  const presence = { topic: "chat.1", version: 7, state: [{ client_id: "n1.0-1-1" }], clients: 1, users: 1 };
  socket.receive("presence", presence);
  await settle();
  assert.deepEqual(seen, [presence]);
});
