// Gaps, epochs and own messages in recoveries, and in handles that share a subscription.
import assert from "node:assert/strict";
import { test } from "node:test";
import { comeBack, note, position, settle, start } from "./support.mjs";

const errorsOf = (app) => app.seen.errors.map(({ code }) => code);

const gap = (socket, from, to, reason = "trimmed") =>
  socket.receive("gap", { topic: "chat.1", ...position(to), from, to, reason });

const newEpoch = (socket, epoch, offset) =>
  socket.receive("gap", { topic: "chat.1", ...position(offset, epoch), reason: "epoch" });

/** Sends a publish that excludes its client. Returns a function that answers it. */
async function postExcluded(app) {
  app.post("chat.1", 1, { excludeSelf: true });
  await settle();
  const [{ id }] = app.socket.take("publish");
  return (at) => app.socket.receive("published", { topic: "chat.1", subscribers: 1, ...at }, id);
}

/** Answers the request for history. */
async function answerHistory(socket, epoch, offsets) {
  const [{ id }] = socket.take("history");
  const messages = offsets.map((offset) => ({
    topic: "chat.1",
    message: { n: offset },
    ...position(offset, epoch),
  }));
  socket.receive("history", { topic: "chat.1", ...position(offsets.at(-1), epoch), messages }, id);
  await settle();
}

/** Returns a hub with a live handle at offset 3, and one that waits for its history. */
async function joined(options) {
  const app = start(options);
  const first = await app.live(3);
  const second = app.subscribe("chat.1", { history: 5 });
  await settle();
  const { socket } = first;
  const answer = (epoch, offsets) => answerHistory(socket, epoch, offsets);
  return { app, socket, first: first.events, second: second.events, answer };
}

/** Delivers messages after an offset to a fast handle and to one whose queue becomes full. */
async function slowAndFast(from, to) {
  const app = start({ maxQueueBytes: 300 });
  const releases = [];
  const slow = note(app.hub.subscribe("chat.1"), () => new Promise((resolve) => releases.push(resolve)));
  const fast = app.subscribe("chat.1");
  const socket = await app.open();
  await socket.subscribed(position(from));
  for (let offset = from + 1; offset <= to; offset += 1) {
    socket.deliver("chat.1", offset);
    await settle();
  }
  const drain = async () => {
    await settle();
    while (releases.length) {
      releases.shift()();
      await settle();
    }
  };
  return { slow, fast, socket, drain };
}

test("a gap in the replay for a slow handle is not told to one that is ahead", async () => {
  const { slow, fast, socket, drain } = await slowAndFast(0, 6);
  await drain();
  const [{ id, data }] = socket.take("subscribe");
  const { offset } = data.recover;
  assert.ok(offset < 5);
  socket.receive("subscribed", { topic: "chat.1", ...data.recover, recovered: true, replay: 6 - offset }, id);
  gap(socket, offset + 1, 5);
  for (const next of [6, 7]) {
    socket.deliver("chat.1", next);
    await drain();
  }
  const numbers = Array.from({ length: offset }, (_, index) => index + 1);
  assert.deepEqual(slow, [
    "live",
    ...numbers,
    "recovering",
    `gap trimmed ${offset + 1}-5`,
    6,
    "live false trimmed",
    7,
  ]);
  assert.deepEqual(fast.events, ["live", 1, 2, 3, 4, 5, 6, "recovering", "live true", 7]);
});

test("a gap that begins in the history of a later handle is told from there on", async () => {
  const { socket, first, second, answer } = await joined();
  gap(socket, 4, 6);
  answer("e1", [2, 3, 4, 5]);
  await settle();
  assert.deepEqual(first, ["gap trimmed 4-6"]);
  assert.deepEqual(second, [2, 3, 4, 5, "live", "gap trimmed 6-6"]);
});

test("a gap in a replay is a part of it that is not recovered", async () => {
  const app = start();
  const { events } = await app.live(10);
  let socket = await comeBack(app);
  await socket.subscribed({ ...position(10), recovered: true, replay: 2 });
  gap(socket, 11, 11);
  socket.deliver("chat.1", 12);
  await settle();
  assert.deepEqual(events.splice(0), ["recovering", "gap trimmed 11-11", 12, "live false trimmed"]);
  socket = await comeBack(app);
  await socket.subscribed({ ...position(12), recovered: true, replay: 2 });
  gap(socket, 13, 14);
  await settle();
  assert.deepEqual(events.splice(0), ["recovering", "gap trimmed 13-14", "live false trimmed"]);
  socket = await comeBack(app);
  await socket.subscribed({ ...position(14), recovered: true, replay: 2 });
  newEpoch(socket, "e2", 16);
  await settle();
  assert.deepEqual(events.splice(0), ["recovering", "gap epoch", "live false epoch"]);
});

test("a gap of a delivery policy is no part of its replay, which is recovered", async () => {
  const app = start();
  const { events } = await app.live(10);
  const socket = await comeBack(app);
  await socket.subscribed({ ...position(10), recovered: true, replay: 1 });
  gap(socket, 11, 19, "conflated");
  await settle();
  assert.deepEqual(events, ["recovering", "gap conflated 11-19"]);
  socket.deliver("chat.1", 20);
  await settle();
  assert.deepEqual(events, ["recovering", "gap conflated 11-19", 20, "live true"]);
});

test("the late answer to a publish fills its hole", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  const answer = await postExcluded(app);
  // The computer sleeps with the message on its way.
  await app.clock.sleep(200_000);
  socket.deliver("chat.1", 12);
  await settle();
  answer(position(11));
  await settle();
  assert.deepEqual(errorsOf(app), []);
  assert.deepEqual(events, [12]);
});

test("an answer that is late is not waited for after its connection", async () => {
  const app = start();
  const { events } = await app.live(10);
  await postExcluded(app);
  await app.clock.sleep(200_000);
  const socket = await comeBack(app);
  await socket.subscribed({ ...position(10), recovered: true });
  socket.deliver("chat.1", 12);
  await settle();
  assert.deepEqual(errorsOf(app), ["hole"]);
  assert.deepEqual(events, ["recovering", "live true", "recovering"]);
});

for (const isAtOnce of [false, true]) {
  test(`gaps before the epoch of read history do not lead back${isAtOnce ? ", at once" : ""}`, async () => {
    const { app, socket, first, second, answer } = await joined();
    // The history was emptied twice, and the subscription is behind.
    newEpoch(socket, "b", 5);
    answer("c", [9]);
    if (!isAtOnce) await settle();
    newEpoch(socket, "c", 8);
    for (const offset of [9, 10]) socket.deliver("chat.1", offset, { epoch: "c" });
    await settle();
    assert.deepEqual(first, ["gap epoch", "gap epoch", 9, 10]);
    assert.deepEqual(second, [9, "live", 10]);
    assert.deepEqual(errorsOf(app), []);
  });
}

test("events of an earlier epoch do not move a handle that is ahead", async () => {
  const { app, socket, first, second, answer } = await joined();
  const answerPublish = await postExcluded(app);
  answer("c", [9]);
  await settle();
  answerPublish(position(4));
  gap(socket, 5, 6);
  socket.deliver("chat.1", 7);
  newEpoch(socket, "c", 8);
  for (const offset of [9, 10]) socket.deliver("chat.1", offset, { epoch: "c" });
  await settle();
  assert.deepEqual(first, ["gap trimmed 5-6", 7, "gap epoch", 9, 10]);
  assert.deepEqual(second, [9, "live", 10]);
});

for (const isToldBefore of [true, false]) {
  test(`a handle that is ahead follows the topic to a later epoch (told before: ${isToldBefore})`, async () => {
    const { socket, second, answer } = await joined();
    // The subscription never reaches the epoch `c`.
    if (isToldBefore) newEpoch(socket, "d", 12);
    answer("c", [9]);
    await settle();
    if (!isToldBefore) newEpoch(socket, "d", 12);
    socket.deliver("chat.1", 13, { epoch: "d" });
    await settle();
    assert.deepEqual(
      second.filter((event) => event !== "live"),
      [9, "gap epoch", 13],
    );
  });
}

test("a joined handle follows a server that lost its offsets", async () => {
  const { socket, second, answer } = await joined();
  newEpoch(socket, "c", 8);
  newEpoch(socket, "e", 2);
  answer("c", [9]);
  await settle();
  socket.deliver("chat.1", 3, { epoch: "e" });
  await settle();
  assert.deepEqual(second, [9, "live", "gap epoch", 3]);
});

test("gaps before the epoch of its history do not lead a handle back that joined at the start", async () => {
  const app = start();
  app.subscribe("chat.1");
  const { events } = app.subscribe("chat.1", { history: 5 });
  const socket = await app.open();
  await socket.subscribed(position(3));
  await answerHistory(socket, "c", [9]);
  newEpoch(socket, "b", 5);
  for (const offset of [6, 7]) socket.deliver("chat.1", offset, { epoch: "b" });
  newEpoch(socket, "c", 8);
  for (const offset of [9, 10]) socket.deliver("chat.1", offset, { epoch: "c" });
  await settle();
  assert.deepEqual(events, [9, "live", 10]);
});

test("pages of history from before it was emptied are left out", async () => {
  const app = start();
  const { socket } = await app.live(3);
  const { events } = app.subscribe("chat.1", { history: 5 });
  await settle();
  for (const [offset, epoch, next] of [
    [3, "b", 4],
    [9, "c", undefined],
  ]) {
    const [{ id }] = socket.take("history");
    const at = { topic: "chat.1", ...position(offset, epoch) };
    socket.receive("history", { ...at, messages: [{ ...at, message: offset }], next }, id);
    await settle();
  }
  newEpoch(socket, "c", 8);
  for (const offset of [9, 10]) socket.deliver("chat.1", offset, { epoch: "c" });
  await settle();
  assert.deepEqual(events, [9, "live", 10]);
});

test("all handles go on under the epoch that follows theirs", async () => {
  const app = start({ maxQueueBytes: 100 });
  const { events, socket } = await app.live(3);
  const fast = app.subscribe("chat.1");
  socket.deliver("chat.1", 4);
  await settle();
  const next = await comeBack(app);
  await next.subscribed({ ...position(4, "b"), recovered: true, replay: 1 });
  next.deliver("chat.1", 5, { epoch: "b" });
  await settle();
  assert.deepEqual(events, [4, "recovering", 5, "live true"]);
  assert.deepEqual(fast.events, ["live", 4, "recovering", 5, "live true"]);
});

test("own messages of an epoch to come are remembered", async () => {
  const { app, socket, first, second, answer } = await joined();
  const answerPublish = await postExcluded(app);
  answer("c", [9]);
  await settle();
  answerPublish(position(9, "c"));
  newEpoch(socket, "c", 8);
  socket.deliver("chat.1", 10, { epoch: "c" });
  await settle();
  assert.deepEqual(errorsOf(app), []);
  assert.deepEqual(first, ["gap epoch", 10]);
  assert.deepEqual(second, [9, "live", 10]);
});

test("own messages of an epoch to come are remembered over a new subscription", async () => {
  const app = start();
  const { events, socket } = await app.live(3);
  const answer = await postExcluded(app);
  answer(position(9, "c"));
  socket.deliver("chat.1", 5);
  await settle();
  await socket.subscribed({ ...position(3), recovered: true });
  newEpoch(socket, "c", 8);
  socket.deliver("chat.1", 10, { epoch: "c" });
  await settle();
  assert.deepEqual(events, ["recovering", "live true", "gap epoch", 10]);
});

test("own messages are remembered while a handle reads its history", async () => {
  const { app, socket, first, second, answer } = await joined({ maxQueueBytes: 100 });
  const answerPublish = await postExcluded(app);
  answerPublish(position(4));
  // The queue has room for one of the messages, so the other one is asked for again.
  answer("e1", [3, 4]);
  await settle();
  await socket.subscribed({ ...position(3), recovered: true, replay: 1 });
  socket.deliver("chat.1", 5);
  await settle();
  assert.deepEqual(errorsOf(app), []);
  assert.deepEqual(first, ["recovering", 5, "live true"]);
  assert.deepEqual(second, [3, "live", "recovering", 5, "live true"]);
});

test("own messages are remembered while a handle is full before a new epoch", async () => {
  const app = start({ maxQueueBytes: 100 });
  const { events, socket } = await app.live(3);
  const answer = await postExcluded(app);
  for (const offset of [4, 5]) socket.deliver("chat.1", offset);
  newEpoch(socket, "c", 5);
  answer(position(6, "c"));
  await settle();
  const { recover } = await socket.subscribed({ ...position(5, "c"), recovered: true });
  assert.deepEqual(recover, position(5, "c"));
  socket.deliver("chat.1", 7, { epoch: "c" });
  await settle();
  assert.deepEqual(errorsOf(app), []);
  assert.deepEqual(events, [4, "gap epoch", "recovering", "live true", 7]);
});

test("a handle that is full before a new epoch asks from its start, and others miss nothing", async () => {
  const { slow, fast, socket, drain } = await slowAndFast(3, 8);
  newEpoch(socket, "c", 8);
  socket.deliver("chat.1", 9, { epoch: "c" });
  await drain();
  const { recover } = await socket.subscribed({ ...position(8, "c"), recovered: true, replay: 2 });
  assert.deepEqual(recover, position(8, "c"));
  for (const offset of [9, 10]) {
    socket.deliver("chat.1", offset, { epoch: "c" });
    await drain();
  }
  assert.deepEqual(slow, ["live", 4, 5, 6, "gap epoch", "recovering", 9, 10, "live true"]);
  const before = ["live", 4, 5, 6, 7, 8, "gap epoch", 9];
  assert.deepEqual(fast.events, [...before, "recovering", 10, "live true"]);
});

test("messages that wait for an answer are limited, and asked for again", async () => {
  const app = start({ maxQueueBytes: 400 });
  const { events, socket } = await app.live(10);
  const answer = await postExcluded(app);
  for (const offset of [12, 13, 14, 15]) socket.deliver("chat.1", offset);
  await settle();
  assert.deepEqual(socket.take("subscribe"), []);
  answer(position(11));
  await settle();
  const { recover } = await socket.subscribed({ ...position(11), recovered: true, replay: 4 });
  assert.deepEqual(recover, position(11));
  for (const offset of [12, 13, 14, 15]) {
    socket.deliver("chat.1", offset);
    await settle();
  }
  assert.deepEqual(errorsOf(app), []);
  assert.deepEqual(events, ["recovering", 12, 13, 14, 15, "live true"]);
});

test("messages that wait for history are limited, and asked for again", async () => {
  const { app, socket, first, second, answer } = await joined({ maxQueueBytes: 400 });
  for (const offset of [4, 5, 6, 7]) {
    socket.deliver("chat.1", offset);
    await settle();
  }
  await answer("e1", [3]);
  const from = socket.sent.find(({ type }) => type === "subscribe").data.recover.offset;
  assert.ok(from >= 3 && from < 7, `recovered from ${from}`);
  await socket.subscribed({ ...position(from), recovered: true, replay: 7 - from });
  for (let offset = from + 1; offset <= 7; offset += 1) {
    socket.deliver("chat.1", offset);
    await settle();
  }
  assert.deepEqual(errorsOf(app), []);
  assert.deepEqual(
    first.filter((event) => typeof event === "number"),
    [4, 5, 6, 7],
  );
  assert.deepEqual(
    second.filter((event) => typeof event === "number"),
    [3, 4, 5, 6, 7],
  );
});

test("messages without a position that wait for history are told as dropped", async () => {
  const app = start({ maxQueueBytes: 200 });
  app.subscribe("news");
  const socket = await app.open();
  await socket.subscribed();
  const { events } = app.subscribe("news", { history: 5 });
  await settle();
  const [{ id }] = socket.take("history");
  for (let number = 1; number <= 9; number += 1)
    socket.receive("message", { topic: "news", message: number, padding: "x".repeat(50) });
  socket.receive("history", { topic: "news", messages: [] }, id);
  await settle();
  socket.receive("message", { topic: "news", message: 10 });
  await settle();
  const seen = events.filter((event) => event !== "live");
  assert.ok(seen.length < 9, seen.join());
  assert.deepEqual(seen.slice(0, 1).concat(seen.slice(-2)), [1, "gap dropped", 10]);
});
