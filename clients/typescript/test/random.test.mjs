// Random orders of events, with an oracle for what each handle must have seen. A failure prints its
// seed: DEEPERHUB_SEED=N repeats it, DEEPERHUB_SEEDS=N plays more of them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ModelHub } from "./model.mjs";
import { settle, start } from "./support.mjs";

const TOPICS = ["a", "b"];

/** Returns a generator of numbers from 0 to 1 that follow from a seed (mulberry32). */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Subscribes with a handler that is slow at times. */
function follow(app, topic, random, releases, options) {
  const handle = app.hub.subscribe(topic, options);
  const events = [];
  handle.on("message", (message) => {
    events.push(message);
    if (random() < 0.2) return new Promise((resolve) => releases.push(resolve));
    return undefined;
  });
  handle.on("gap", (gap) => events.push({ gap }));
  return { topic, handle, events, readsHistory: !!options?.history };
}

/** Checks what a handle saw against what the hub had. */
function check(hub, { topic, events, readsHistory }, clientIds, isOver) {
  const logs = new Map(hub.topics.get(topic).epochs.map((log) => [log.epoch, log.messages]));
  const isOwn = (epoch, offset) => clientIds.has(logs.get(epoch)[offset - 1].excluded);
  const seen = new Set();
  let at = null;
  for (const event of events) {
    if (event.gap) {
      const { from, to } = event.gap;
      // A gap without offsets may lead anywhere.
      if (from === undefined) at = null;
      else if (at) {
        for (let offset = at.offset + 1; offset < from; offset += 1)
          assert.ok(isOwn(at.epoch, offset), `${topic} ${offset} is missing`);
        assert.ok(to > at.offset, `${topic}: a gap to ${to} after ${at.offset}`);
        at = { epoch: at.epoch, offset: to };
      }
      continue;
    }
    const { epoch, offset, message } = event;
    assert.ok(!seen.has(`${epoch} ${offset}`), `${topic} ${epoch} ${offset} is repeated`);
    seen.add(`${epoch} ${offset}`);
    assert.deepEqual(logs.get(epoch)[offset - 1].message, message);
    // History that was read has the own messages too.
    assert.ok(readsHistory || !isOwn(epoch, offset), `${topic} ${epoch} ${offset} is an own message`);
    if (at) {
      assert.equal(epoch, at.epoch, `${topic} ${offset}: a new epoch without a gap`);
      assert.ok(offset > at.offset, `${topic} ${offset} comes after ${at.offset}`);
      for (let skipped = at.offset + 1; skipped < offset; skipped += 1)
        assert.ok(isOwn(epoch, skipped), `${topic} ${epoch} ${skipped} is missing`);
    }
    at = { epoch, offset };
  }
  if (!isOver || !at) return;
  const newest = hub.log(topic);
  assert.equal(at.epoch, newest.epoch, topic);
  for (let offset = at.offset + 1; offset <= newest.messages.length; offset += 1)
    assert.ok(isOwn(at.epoch, offset), `${topic} ${offset} is missing at the end`);
}

async function play(seed) {
  const random = generator(seed);
  const pick = (list) => list[Math.floor(random() * list.length)];
  const hub = new ModelHub(random, TOPICS);
  const app = start({ minDelay: 20, maxDelay: 100, maxQueueBytes: random() < 0.5 ? 600 : 100_000 });
  const releases = [];
  const handles = [];
  const left = [];
  const results = [];
  const clientIds = new Set();
  let number = 0;
  const connect = async () => {
    await app.clock.advance(20);
    const { socket } = app;
    if (hub.connection || !socket || socket.isEnded || socket.closedWith) return;
    hub.accept(socket);
    clientIds.add(hub.connection.id);
    await socket.welcome({}, { client_id: hub.connection.id });
  };
  const cut = async () => {
    const { socket } = hub.connection;
    hub.connection = null;
    await socket.cut();
  };
  const step = async (faults) => {
    await connect();
    if (!hub.connection) return;
    hub.process(1 + Math.floor(random() * 4));
    hub.send(1 + Math.floor(random() * 6), faults);
    await settle();
  };
  for (const topic of TOPICS) handles.push(follow(app, topic, random, releases));
  const actions = [
    [10, () => step(true)],
    [8, () => hub.publish(pick(TOPICS), ++number, "n2.0-1-1")],
    [
      5,
      () =>
        results.push(
          app.post(pick(TOPICS), ++number, { excludeSelf: random() < 0.5, ordered: random() < 0.8 }),
        ),
    ],
    [4, () => releases.shift()?.()],
    [2, () => hub.connection && cut()],
    [0.5, () => hub.trim(pick(TOPICS))],
    [0.5, () => hub.clear(pick(TOPICS))],
    [
      0.3,
      () => {
        if (!hub.connection) hub.restart();
      },
    ],
    [
      0.7,
      () => handles.push(follow(app, pick(TOPICS), random, releases, random() < 0.5 ? { history: 3 } : {})),
    ],
    [
      0.7,
      () => {
        const index = Math.floor(random() * handles.length);
        const [handle] = handles.splice(index, 1);
        if (!handle) return;
        handle.handle.unsubscribe();
        left.push(handle);
      },
    ],
  ];
  const total = actions.reduce((sum, [weight]) => sum + weight, 0);
  for (let round = 0; round < 300; round += 1) {
    let at = random() * total;
    const [, action] = actions.find(([weight]) => (at -= weight) < 0) ?? actions[0];
    await action();
  }
  // The faults end: everything arrives. A lost message shows at the next one.
  for (const topic of TOPICS) hub.publish(topic, ++number, "n2.0-1-1");
  for (let round = 0; round < 300; round += 1) {
    while (releases.length) releases.shift()();
    await step(false);
  }
  const stored = new Map();
  for (const topic of hub.topics.values()) {
    for (const { epoch, messages } of topic.epochs) {
      for (const { once } of messages) {
        if (!once) continue;
        const key = `${epoch} ${once}`;
        assert.ok(!stored.has(key), `${topic.name}: published twice`);
        stored.set(key, true);
      }
    }
  }
  await Promise.all(results);
  for (const handle of left) check(hub, handle, clientIds, false);
  for (const handle of handles) check(hub, handle, clientIds, true);
  for (const error of app.seen.errors) assert.equal(error.code, "hole");
  void app.hub.close();
  return handles.reduce((sum, { events }) => sum + events.length, 0);
}

test("random orders of events lose and repeat nothing", async (context) => {
  const one = process.env.DEEPERHUB_SEED;
  const seeds = one
    ? [Number(one)]
    : Array.from({ length: Number(process.env.DEEPERHUB_SEEDS ?? 30) }, (_, index) => index + 1);
  let seen = 0;
  for (const seed of seeds) {
    context.mock.method(Math, "random", generator(seed + 1_000_000));
    try {
      seen += await play(seed);
    } catch (error) {
      error.message = `DEEPERHUB_SEED=${seed}: ${error.message}`;
      throw error;
    }
  }
  assert.ok(seen > seeds.length * 20, `only ${seen} events`);
});
