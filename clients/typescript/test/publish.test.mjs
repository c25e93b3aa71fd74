import assert from "node:assert/strict";
import { test } from "node:test";
import { comeBack, fixRandom, position, settle, start } from "./support.mjs";

const payloads = (publishes) => publishes.map(({ data }) => data.message);

async function answer(socket, publish, data = {}) {
  socket.receive("published", { topic: publish.data.topic, subscribers: 1, ...data }, publish.id);
  await settle();
}

async function refuse(socket, publish, code, ms) {
  socket.receive("error", { code, message: code, retry_after_ms: ms }, publish.id);
  await settle();
}

test("a publish waits for the connection and has the server's answer", async () => {
  const app = start();
  const result = app.post("chat.1", { text: "hi" }, { excludeSelf: true });
  const socket = await app.open();
  const [publish] = socket.take("publish");
  assert.equal(typeof publish.data.once, "string");
  assert.ok(publish.data.once.length <= 64);
  assert.deepEqual(
    { ...publish.data, once: "" },
    { topic: "chat.1", message: { text: "hi" }, exclude_self: true, once: "" },
  );
  await answer(socket, publish, position(42));
  assert.deepEqual(await result, { topic: "chat.1", subscribers: 1, ...position(42) });
});

test("publishes of one topic follow each other, those of others do not wait", async () => {
  const app = start();
  const socket = await app.open();
  for (const [topic, message] of [
    ["a", 1],
    ["a", 2],
    ["b", 3],
  ])
    app.post(topic, message);
  app.post("a", 4, { ordered: false });
  await settle();
  const sent = socket.take("publish");
  assert.deepEqual(payloads(sent), [1, 3, 4]);
  await answer(socket, sent[0]);
  assert.deepEqual(payloads(socket.take("publish")), [2]);
});

test("an unanswered publish is sent again with the same once, before the subscribe", async () => {
  const app = start();
  app.subscribe("chat.1");
  let socket = await app.open();
  const results = [app.post("chat.1", 1), app.post("other", 2), app.post("chat.1", 3)];
  await settle();
  const first = socket.take("publish");
  socket = await comeBack(app);
  assert.deepEqual(
    socket.sent.map(({ type }) => type),
    ["publish", "publish", "subscribe"],
  );
  const second = socket.take("publish");
  assert.deepEqual(second, first);
  await answer(socket, second[1]);
  await answer(socket, second[0]);
  await answer(socket, socket.take("publish")[0]);
  assert.equal((await Promise.all(results)).length, 3);
});

test("every publish and every client has a once of its own", async () => {
  const onces = new Set();
  for (let client = 0; client < 3; client += 1) {
    const app = start();
    const socket = await app.open();
    for (let number = 0; number < 3; number += 1) app.post(`t.${number}`, 1);
    await settle();
    for (const { data } of socket.take("publish")) onces.add(data.once);
  }
  assert.equal(onces.size, 9);
});

test("at most 32 publishes are unanswered", async () => {
  const app = start();
  const socket = await app.open();
  for (let number = 0; number < 50; number += 1) app.post(`t.${number}`, number);
  await settle();
  const sent = socket.take("publish");
  assert.equal(sent.length, 32);
  await answer(socket, sent[5]);
  assert.deepEqual(payloads(socket.take("publish")), [32]);
  const next = await comeBack(app);
  assert.deepEqual(
    payloads(next.take("publish")),
    [...Array(33).keys()].filter((number) => number !== 5),
  );
});

test("unavailable is sent again after its time, in order", async () => {
  const app = start();
  const socket = await app.open();
  const results = [app.post("a", 1), app.post("a", 2), app.post("b", 3)];
  await settle();
  const [first, other] = socket.take("publish");
  await refuse(socket, first, "unavailable", 500);
  await answer(socket, other);
  await app.clock.advance(499);
  assert.deepEqual(socket.take("publish"), []);
  await app.clock.advance(1);
  const [again] = socket.take("publish");
  assert.deepEqual(again, first);
  await answer(socket, again);
  await answer(socket, socket.take("publish")[0]);
  assert.equal((await Promise.all(results)).length, 3);
});

test("internal is sent again after a backoff", async (t) => {
  fixRandom(t, 1);
  const app = start();
  const socket = await app.open();
  app.post("a", 1);
  await settle();
  for (const wait of [1000, 2000]) {
    await refuse(socket, socket.take("publish")[0], "internal");
    await app.clock.advance(wait - 1);
    assert.deepEqual(socket.take("publish"), []);
    await app.clock.advance(1);
  }
  assert.equal(socket.take("publish").length, 1);
});

test("rate_limited holds all publishes back, over a reconnect too", async () => {
  const app = start();
  let socket = await app.open();
  app.post("a", 1);
  await settle();
  await refuse(socket, socket.take("publish")[0], "rate_limited", 5000);
  app.post("b", 2);
  await settle();
  assert.deepEqual(socket.take("publish"), []);
  socket = await comeBack(app);
  assert.deepEqual(socket.take("publish"), []);
  await app.clock.advance(5000);
  assert.deepEqual(payloads(socket.take("publish")), [1, 2]);
});

test("another error fails the publish, and the next one follows", async () => {
  const app = start();
  const socket = await app.open();
  const refused = assert.rejects(app.post("a", 1), { name: "HubError", code: "forbidden" });
  app.post("a", 2);
  await settle();
  await refuse(socket, socket.take("publish")[0], "forbidden");
  await refused;
  assert.deepEqual(payloads(socket.take("publish")), [2]);
});

test("a publish without an answer fails two minutes after it was first sent", async () => {
  const app = start();
  await app.clock.advance(5000);
  const late = assert.rejects(app.post("a", 1), { code: "timeout" });
  let socket = await app.open();
  await app.clock.advance(9000);
  socket = await comeBack(app);
  for (let time = 0; time < 120_000; time += 5000) {
    socket.receive("pong");
    await app.clock.advance(5000);
  }
  await late;
  assert.deepEqual((await comeBack(app)).take("publish"), []);
});

test("what waits to be published is bounded", async () => {
  const app = start({ maxPendingBytes: 1000 });
  const first = app.post("a", "x".repeat(600));
  await assert.rejects(app.post("b", "x".repeat(600)), { code: "queue_full" });
  const socket = await app.open();
  await answer(socket, socket.take("publish")[0]);
  await first;
  app.post("b", "x".repeat(600));
  await settle();
  assert.equal(socket.take("publish").length, 1);
});

test("a message that is too large fails, before the first welcome too", async () => {
  const app = start();
  const early = assert.rejects(app.post("a", "é".repeat(500)), { code: "message_too_large" });
  const next = app.post("a", 2);
  const socket = await app.open({ max_message_bytes: 1000 });
  await early;
  const [publish] = socket.take("publish");
  assert.equal(publish.data.message, 2);
  await answer(socket, publish);
  await next;
  await assert.rejects(app.post("a", "x".repeat(1000)), { code: "message_too_large" });
});

test("a message that is no JSON rejects", async () => {
  const app = start();
  const cycle = {};
  cycle.self = cycle;
  await assert.rejects(app.post("a", cycle), TypeError);
  const socket = await app.open();
  app.post("a", 1);
  await settle();
  assert.equal(socket.take("publish").length, 1);
});

test("close fails what is unanswered and what follows", async () => {
  const app = start();
  await app.open();
  const waiting = [app.post("a", 1), app.post("a", 2), app.hub.echo(1)];
  await settle();
  void app.hub.close();
  for (const result of [...waiting, app.post("a", 3), app.hub.history("a")]) {
    await assert.rejects(result, { code: "closed" });
  }
});

test("subscribe is sent before a publish of the same moment", async () => {
  const app = start();
  const socket = await app.open();
  app.post("a", 1);
  app.subscribe("a");
  await settle();
  assert.deepEqual(
    socket.sent.map(({ type }) => type),
    ["subscribe", "publish"],
  );
});

test("the answer to an own publish fills its hole", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  const result = app.post("chat.1", 1, { excludeSelf: true });
  await settle();
  const [publish] = socket.take("publish");
  socket.deliver("chat.1", 12);
  socket.deliver("chat.1", 13);
  await settle();
  assert.deepEqual(events, []);
  await answer(socket, publish, position(11));
  assert.deepEqual(events, [12, 13]);
  await result;
  const next = await comeBack(app);
  assert.deepEqual((await next.subscribed({ ...position(13), recovered: true })).recover, position(13));
  assert.deepEqual(app.seen.errors, []);
});

test("an answer before the messages around it fills its hole too", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  app.post("chat.1", 1, { excludeSelf: true });
  app.post("chat.1", 2, { excludeSelf: true });
  await settle();
  await answer(socket, socket.take("publish")[0], position(12));
  await answer(socket, socket.take("publish")[0], position(13));
  socket.deliver("chat.1", 11);
  socket.deliver("chat.1", 14);
  await settle();
  assert.deepEqual(events, [11, 14]);
});

test("a hole that no own publish explains is asked for when the answers are there", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  app.post("chat.1", 1, { excludeSelf: true });
  await settle();
  const [publish] = socket.take("publish");
  socket.deliver("chat.1", 13);
  await settle();
  assert.deepEqual(app.seen.errors, []);
  await answer(socket, publish, position(11));
  assert.deepEqual(
    app.seen.errors.map(({ code }) => code),
    ["hole"],
  );
  const { recover } = await socket.subscribed({ ...position(11), recovered: true, replay: 2 });
  assert.equal(recover.offset, 11);
  socket.deliver("chat.1", 12);
  socket.deliver("chat.1", 13);
  await settle();
  assert.deepEqual(events, ["recovering", 12, 13, "live true"]);
});

test("the own message in a replay is dropped", async () => {
  const app = start();
  const { events } = await app.live(10);
  app.post("chat.1", 1, { excludeSelf: true });
  await settle();
  const next = await comeBack(app);
  await answer(next, next.take("publish")[0], position(11));
  await next.subscribed({ ...position(10), recovered: true, replay: 2 });
  next.deliver("chat.1", 11, { from: "n1.0-1-1" });
  next.deliver("chat.1", 12);
  await settle();
  assert.deepEqual(events, ["recovering", 12, "live true"]);
});

test("the own message in a replay waits for the answer, if that comes later", async () => {
  const app = start();
  const { events } = await app.live(10);
  app.post("chat.1", 1, { excludeSelf: true });
  await settle();
  const next = await comeBack(app);
  await next.subscribed({ ...position(10), recovered: true, replay: 2 });
  next.deliver("chat.1", 11, { from: "n1.0-1-1" });
  next.deliver("chat.1", 12);
  await settle();
  assert.deepEqual(events, ["recovering"]);
  await answer(next, next.take("publish")[0], position(11));
  assert.deepEqual(events, ["recovering", 12, "live true"]);
});
