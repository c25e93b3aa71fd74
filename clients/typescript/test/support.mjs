// A hub whose server, clock and random numbers are the test's own.
import { afterEach } from "node:test";
import { Hub } from "../dist/deeperhub.js";

export const URL = "ws://hub.test/";
export const EPOCH = "e1";

/** Lets all promises settle that can. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Time that moves only when a test says so. */
export class FakeClock {
  time = 1000;
  timers = new Map();
  lastTimer = 0;

  now() {
    return this.time;
  }

  setTimeout(callback, ms) {
    this.timers.set(++this.lastTimer, { at: this.time + ms, callback });
    return this.lastTimer;
  }

  clearTimeout(timer) {
    this.timers.delete(timer);
  }

  /** Fires the timers that are due on the way, each at its time. */
  async advance(ms) {
    const end = this.time + ms;
    await settle();
    for (;;) {
      const due = [...this.timers].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      const [timer, { at, callback }] = due;
      this.timers.delete(timer);
      this.time = Math.max(this.time, at);
      callback();
      await settle();
    }
    this.time = end;
  }

  /** Jumps: no timer fires on the way, as on a computer that sleeps. */
  async sleep(ms) {
    this.time += ms;
    await this.advance(0);
  }
}

class FakeSocket {
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;
  sent = [];
  closedWith = undefined;
  isEnded = false;

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closedWith = code ?? 1005;
  }

  receive(type, data, id) {
    this.onmessage?.({ data: JSON.stringify({ type, id, data }) });
  }

  /** Ends the connection from outside. */
  async cut(code = 1006, reason = "") {
    this.isEnded = true;
    this.onclose?.({ code, reason });
    await settle();
  }

  async welcome(limits = {}, more = {}) {
    const all = { max_message_bytes: 65536, max_subscriptions: 128, ping_interval_ms: 25000, ...limits };
    this.receive("welcome", { client_id: "n1.0-1-1", server_time: 1_796_000_000_000, limits: all, ...more });
    await settle();
  }

  /** Returns the messages of a type that were sent since the last call. */
  take(type) {
    const taken = this.sent.filter((message) => message.type === type);
    this.sent = this.sent.filter((message) => message.type !== type);
    return taken;
  }

  /** Answers the only unanswered subscribe. */
  async subscribed(data = {}) {
    const [subscribe, ...others] = this.take("subscribe");
    if (!subscribe || others.length)
      throw new Error(`not one subscribe, but ${others.length + (subscribe ? 1 : 0)}`);
    this.receive("subscribed", { topic: subscribe.data.topic, ...data }, subscribe.id);
    await settle();
    return subscribe.data;
  }

  deliver(topic, offset, more = {}) {
    this.receive("message", {
      topic,
      message: { n: offset },
      from: "n1.0-1-2",
      ...position(offset),
      ...more,
    });
  }
}

export function position(offset, epoch = EPOCH) {
  return { epoch, offset, time: 1_796_000_000_000 + offset };
}

const hubs = [];
afterEach(async () => {
  for (const { hub } of hubs.splice(0)) void hub.close();
});

/** Creates a hub and notes everything that its application sees. */
export function start(options = {}) {
  const clock = new FakeClock();
  const sockets = [];
  const seen = { states: [], errors: [], messages: [] };
  class WebSocket extends FakeSocket {
    constructor(url, protocols) {
      super(url, protocols);
      sockets.push(this);
    }
  }
  const hub = new Hub(URL, { WebSocket, clock, ...options });
  hub.on("state", (state) => seen.states.push(state));
  hub.on("error", (error) => seen.errors.push(error));
  hub.on("message", (message) => seen.messages.push(message));
  const test = {
    hub,
    clock,
    sockets,
    seen,
    get socket() {
      return sockets.at(-1);
    },
    /** Returns the socket of an open hub. */
    async open(limits, more) {
      await settle();
      await test.socket.welcome(limits, more);
      return test.socket;
    },
    /** Publishes. The end of the test may reject the promise. */
    post(...publish) {
      const result = hub.publish(...publish);
      result.catch(() => {});
      return result;
    },
    /** Subscribes and notes what the handle sees. */
    subscribe(topic, subscribeOptions) {
      const handle = hub.subscribe(topic, subscribeOptions);
      return { handle, events: note(handle) };
    },
    /** Returns an open hub with one live subscription. */
    async live(offset = 10, topic = "chat.1", subscribeOptions = {}) {
      const { handle, events } = test.subscribe(topic, subscribeOptions);
      const socket = await test.open();
      await socket.subscribed(position(offset));
      events.length = 0;
      return { handle, events, socket };
    },
  };
  hubs.push(test);
  return test;
}

/** Notes messages, gaps and states of a handle in the order in which they are seen. */
export function note(handle, onMessage) {
  const events = [];
  handle.on("message", (message) => {
    events.push(message.offset ?? message.message);
    return onMessage?.(message);
  });
  handle.on("gap", ({ reason, from, to }) =>
    events.push(from === undefined ? `gap ${reason}` : `gap ${reason} ${from}-${to}`),
  );
  handle.on("state", ({ state, recovered, reason }) => {
    events.push([state, recovered, reason].filter((part) => part !== undefined).join(" "));
  });
  return events;
}

/** Makes random numbers the same each time, for one test. */
export function fixRandom(test, value) {
  test.mock.method(Math, "random", () => value);
}

/** Cuts the connection and opens the next one. */
export async function comeBack(app) {
  await app.socket.cut();
  while (app.hub.state.state === "waiting") await app.clock.advance(100);
  return app.open();
}
