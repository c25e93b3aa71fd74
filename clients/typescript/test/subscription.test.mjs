import assert from "node:assert/strict";
import { test } from "node:test";
import { comeBack, position, settle, start } from "./support.mjs";

test("a first subscribe is live after its replay", async () => {
  const app = start();
  const { handle, events } = app.subscribe("chat.1", { history: 2 });
  const socket = await app.open();
  assert.deepEqual(await socket.subscribed({ ...position(8), replay: 2 }), { topic: "chat.1", history: 2 });
  await handle.ready;
  socket.deliver("chat.1", 9);
  await settle();
  assert.deepEqual(events, [9]);
  socket.deliver("chat.1", 10);
  await settle();
  assert.deepEqual(events, [9, 10, "live"]);
});

test("a message has the keys of the protocol without prev", async () => {
  const app = start();
  const { handle, socket } = await app.live();
  const messages = [];
  handle.on("message", (message) => messages.push(message));
  socket.deliver("chat.1", 11, { prev: 10 });
  await settle();
  assert.deepEqual(messages, [{ topic: "chat.1", message: { n: 11 }, from: "n1.0-1-2", ...position(11) }]);
});

test("one message subscribes to all topics, with their positions", async () => {
  const app = start();
  app.subscribe("a", { history: 5 });
  app.subscribe("p.>");
  app.subscribe("b", { presence: { info: { name: "ada" } } });
  let socket = await app.open();
  const [first, ...others] = socket.take("subscribe");
  assert.deepEqual(others, []);
  assert.deepEqual(first.data.topics, [
    { topic: "a", history: 5 },
    { topic: "b", presence: { info: { name: "ada" } } },
    { topic: "p.>" },
  ]);
  socket.receive(
    "subscribed",
    { topics: [{ topic: "a", ...position(3) }, { topic: "b" }, { topic: "p.>" }] },
    first.id,
  );
  socket = await comeBack(app);
  const [again] = socket.take("subscribe");
  assert.deepEqual(again.data.topics[0], { topic: "a", recover: position(3), history: 5 });
});

test("a subscribe that would be too long is divided", async () => {
  const app = start();
  for (let number = 0; number < 100; number += 1) app.subscribe(`topic.${number}.${"x".repeat(50)}`);
  const socket = await app.open({ max_message_bytes: 2000, max_subscriptions: 20 });
  const subscribes = socket.take("subscribe");
  assert.equal(subscribes.flatMap(({ data }) => data.topics).length, 100);
  for (const subscribe of subscribes) {
    assert.ok(JSON.stringify(subscribe).length <= 2000);
    assert.ok(subscribe.data.topics.length <= 20);
  }
});

test("recovered messages come once, before live ones", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  socket.deliver("chat.1", 11);
  const next = await comeBack(app);
  const data = await next.subscribed({ ...position(11), recovered: true, replay: 2 });
  assert.deepEqual(data.recover, position(11));
  for (const offset of [12, 13, 14]) next.deliver("chat.1", offset);
  await settle();
  assert.deepEqual(events, [11, "recovering", 12, 13, "live true", 14]);
});

test("each reason for a lost position is told as a gap", async () => {
  const cases = [
    [{ ...position(50), reason: "trimmed" }, ["gap trimmed 11-50", "live false trimmed"]],
    [{ ...position(3, "e2"), reason: "epoch" }, ["gap epoch", "live false epoch"]],
    [{ ...position(4), reason: "ahead" }, ["gap ahead", "live false ahead"]],
    [{ reason: "no_history" }, ["gap no_history", "live false no_history"]],
    [{ ...position(12), reason: "overlap" }, ["gap overlap 11-12", "live false overlap"]],
  ];
  for (const [reply, expected] of cases) {
    const app = start();
    const { events } = await app.live(10);
    const socket = await comeBack(app);
    await socket.subscribed({ ...reply, recovered: false });
    assert.deepEqual(events, ["recovering", ...expected]);
  }
});

test("a topic without history is not recovered after a reconnect", async () => {
  const app = start();
  const { events } = app.subscribe("news");
  let socket = await app.open();
  await socket.subscribed();
  socket.receive("message", { topic: "news", message: "one" });
  socket = await comeBack(app);
  assert.deepEqual(await socket.subscribed(), { topic: "news" });
  socket.receive("message", { topic: "news", message: "two" });
  await settle();
  assert.deepEqual(events, ["live", "one", "recovering", "gap no_history", "live false no_history", "two"]);
});

test("duplicates are dropped, also of gaps", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  const gap = { topic: "chat.1", ...position(20), from: 13, to: 20, reason: "trimmed" };
  for (const offset of [10, 11, 11, 12, 11, 5]) socket.deliver("chat.1", offset);
  socket.receive("gap", gap);
  socket.receive("gap", gap);
  socket.deliver("chat.1", 20);
  socket.deliver("chat.1", 21);
  socket.deliver("chat.1", 30, { prev: 21 });
  socket.receive("position", { topic: "chat.1", ...position(40) });
  socket.deliver("chat.1", 41);
  await settle();
  assert.deepEqual(events, [11, 12, "gap trimmed 13-20", 21, 30, 41]);
  assert.deepEqual(app.seen.errors, []);
});

test("a gap with a new epoch moves the position", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  socket.receive("gap", { topic: "chat.1", ...position(0, "e2"), reason: "epoch" });
  socket.deliver("chat.1", 1, position(1, "e2"));
  await settle();
  assert.deepEqual(events, ["gap epoch", 1]);
});

for (const [name, more] of [
  ["a missing message", {}],
  ["another epoch", { epoch: "e2", offset: 11 }],
]) {
  test(`${name} that nobody told is a hole`, async () => {
    const app = start();
    const { events, socket } = await app.live(10);
    socket.deliver("chat.1", 12, more);
    socket.deliver("chat.1", 13, more);
    await settle();
    assert.deepEqual(
      app.seen.errors.map(({ code }) => code),
      ["hole"],
    );
    assert.equal(socket.take("unsubscribe").length, 1);
    const { recover } = await socket.subscribed({ ...position(10), recovered: true, replay: 3 });
    assert.deepEqual(recover, position(10));
    for (const offset of [11, 12, 13]) socket.deliver("chat.1", offset);
    await settle();
    assert.deepEqual(events, ["recovering", 11, 12, 13, "live true"]);
  });
}

test("two handles share a subscription, which ends with the last of them", async () => {
  const app = start();
  const { handle, events, socket } = await app.live(10);
  const second = app.subscribe("chat.1");
  await settle();
  assert.deepEqual(socket.take("subscribe"), []);
  await second.handle.ready;
  socket.deliver("chat.1", 11);
  await settle();
  handle.unsubscribe();
  await settle();
  assert.deepEqual(socket.take("unsubscribe"), []);
  socket.deliver("chat.1", 12);
  await settle();
  second.handle.unsubscribe();
  await settle();
  assert.deepEqual(
    socket.take("unsubscribe").map(({ data }) => data),
    [{ topic: "chat.1" }],
  );
  assert.deepEqual(events, [11, "ended unsubscribed"]);
  assert.deepEqual(second.events, ["live", 11, 12, "ended unsubscribed"]);
});

test("a later handle reads its history, page by page, before live messages", async () => {
  const app = start();
  const { socket } = await app.live(10);
  const second = app.subscribe("chat.1", { history: 4 });
  await settle();
  socket.deliver("chat.1", 11);
  socket.deliver("chat.1", 12);
  const message = (offset) => ({ topic: "chat.1", message: { n: offset }, ...position(offset) });
  const answer = async (data) => {
    const [request] = socket.take("history");
    socket.receive("history", { topic: "chat.1", ...position(11), ...data }, request.id);
    await settle();
    return request.data;
  };
  assert.deepEqual(await answer({ messages: [message(8), message(9)], next: 10 }), {
    topic: "chat.1",
    from: -4,
    limit: 4,
  });
  assert.deepEqual(second.events, []);
  assert.deepEqual(await answer({ messages: [message(10), message(11)] }), {
    topic: "chat.1",
    from: 10,
    limit: 4,
  });
  assert.deepEqual(second.events, [8, 9, 10, 11, "live", 12]);
});

test("a later handle whose history is refused goes on without", async () => {
  const app = start();
  const { socket } = await app.live(10);
  const second = app.subscribe("chat.1", { history: 4 });
  await settle();
  const [request] = socket.take("history");
  socket.deliver("chat.1", 11);
  socket.receive("error", { code: "forbidden", message: "no history for you" }, request.id);
  await settle();
  assert.deepEqual(second.events, ["live", 11]);
  assert.equal(app.seen.errors[0].code, "forbidden");
});

test("a message goes to every handle whose topic or pattern matches", async () => {
  const app = start();
  const exact = app.subscribe("sports.chess");
  const level = app.subscribe("sports.*");
  const rest = app.subscribe("sports.>");
  const socket = await app.open();
  const [subscribe] = socket.take("subscribe");
  socket.receive("subscribed", { topics: [{ topic: "sports.chess", ...position(0) }, {}, {}] }, subscribe.id);
  socket.deliver("sports.chess", 1);
  socket.deliver("sports.chess", 1);
  socket.deliver("sports.chess.live", 7);
  socket.deliver("music", 9);
  await settle();
  assert.deepEqual(exact.events, ["live", 1]);
  assert.deepEqual(level.events, ["live", 1]);
  assert.deepEqual(rest.events, ["live", 1, 7]);
});

test("messages before subscribed belong to an earlier subscription", async () => {
  const app = start();
  const { handle, socket } = await app.live(10);
  handle.unsubscribe();
  const again = app.subscribe("chat.1");
  await settle();
  assert.deepEqual(
    socket.sent.map(({ type }) => type),
    ["unsubscribe", "subscribe"],
  );
  socket.deliver("chat.1", 11);
  await socket.subscribed(position(11));
  socket.deliver("chat.1", 12);
  await settle();
  assert.deepEqual(again.events, ["live", 12]);
});

test("a temporary error is tried again with the position", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  const next = await comeBack(app);
  const [subscribe] = next.take("subscribe");
  next.receive("error", { code: "unavailable", message: "later", retry_after_ms: 3000 }, subscribe.id);
  await app.clock.advance(2999);
  assert.deepEqual(next.take("subscribe"), []);
  await app.clock.advance(1);
  assert.deepEqual((await next.subscribed({ ...position(10), recovered: true })).recover, position(10));
  assert.deepEqual(events, ["recovering", "live true"]);
  assert.ok(socket.isEnded);
});

test("topics that fail for a while are asked for again with one message", async () => {
  const app = start();
  for (const topic of ["a", "b", "c"]) app.subscribe(topic);
  const socket = await app.open();
  const [subscribe] = socket.take("subscribe");
  const error = { code: "too_many_topics", message: "full", retry_after_ms: 1000 };
  socket.receive(
    "subscribed",
    { topics: [{ topic: "a", error }, { topic: "b" }, { topic: "c", error }] },
    subscribe.id,
  );
  await app.clock.advance(1000);
  assert.deepEqual(
    socket.take("subscribe").map(({ data }) => data),
    [{ topics: [{ topic: "a" }, { topic: "c" }] }],
  );
});

test("another error ends the subscription and rejects ready", async () => {
  const app = start();
  const { handle, events } = app.subscribe("a..b");
  const socket = await app.open();
  const [subscribe] = socket.take("subscribe");
  socket.receive("error", { code: "invalid_topic", message: "an empty level" }, subscribe.id);
  await assert.rejects(handle.ready, { name: "HubError", code: "invalid_topic", message: "an empty level" });
  assert.deepEqual(events, ["ended invalid_topic"]);
  assert.deepEqual(handle.state, { state: "ended", reason: "invalid_topic" });
  await comeBack(app);
  assert.deepEqual(app.socket.take("subscribe"), []);
});

test("unsubscribed without a request ends the subscription", async () => {
  const app = start();
  const { events, socket } = await app.live(10);
  socket.deliver("chat.1", 11);
  socket.receive("unsubscribed", { topic: "chat.1" });
  socket.deliver("chat.1", 12);
  await settle();
  assert.deepEqual(events, [11, "ended forbidden"]);
});
