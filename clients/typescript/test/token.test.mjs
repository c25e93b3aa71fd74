import assert from "node:assert/strict";
import { test } from "node:test";
import { fixRandom, settle, start } from "./support.mjs";

const SERVER_TIME = 1_796_000_000_000;

function jwt(claims) {
  return `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.c2ln`;
}

/** Returns a token function that gives out these tokens, and its calls. */
function source(...tokens) {
  const calls = [];
  return {
    calls,
    token: async () => {
      calls.push(1);
      const token = tokens.length > 1 ? tokens.shift() : tokens[0];
      if (token instanceof Error) throw token;
      return token;
    },
  };
}

function answer(socket, type, data) {
  const [authenticate] = socket.take("authenticate");
  socket.receive(type, data, authenticate.id);
  return authenticate.data.token;
}

test("the token is a subprotocol", async () => {
  const app = start({ token: "a.b.c" });
  await settle();
  assert.deepEqual(app.socket.protocols, ["deeperhub.v1.json", "bearer.a.b.c"]);
  await app.socket.welcome();
  assert.equal(app.hub.state.state, "open");
});

test("a handshake that failed with a token is tried without, and the token follows", async () => {
  const { token, calls } = source("t1", "t2", "t3");
  const app = start({ token });
  await settle();
  await app.socket.cut();
  await app.clock.advance(1000);
  assert.deepEqual(app.socket.protocols, ["deeperhub.v1.json"]);
  await app.socket.welcome();
  assert.equal(app.hub.state.state, "connecting");
  assert.equal(
    answer(app.socket, "authenticated", { user: "ada", expires_at: SERVER_TIME / 1000 + 600 }),
    "t2",
  );
  assert.equal(app.hub.state.state, "open");
  await app.socket.cut();
  await app.clock.advance(2000);
  assert.deepEqual(app.socket.protocols, ["deeperhub.v1.json", "bearer.t3"]);
  assert.equal(calls.length, 3);
});

test("a token that is no subprotocol is sent after the handshake", async () => {
  const app = start({ token: "with space" });
  await settle();
  assert.deepEqual(app.socket.protocols, ["deeperhub.v1.json"]);
  await app.socket.welcome();
  assert.equal(answer(app.socket, "authenticated", { user: "ada" }), "with space");
  assert.equal(app.hub.state.state, "open");
});

test("a string that is refused closes the hub", async () => {
  const app = start({ token: "old one" });
  await settle();
  await app.socket.welcome();
  answer(app.socket, "error", { code: "token_expired", message: "expired" });
  await settle();
  assert.deepEqual(app.seen.states.at(-1), { state: "closed", reason: "token_expired" });
});

test("a function is asked again once, then the backoff applies", async (t) => {
  fixRandom(t, 1);
  const { token, calls } = source("a a", "b b", "c c");
  const app = start({ token });
  await settle();
  await app.socket.welcome();
  assert.equal(answer(app.socket, "error", { code: "token_invalid", message: "no" }), "a a");
  await settle();
  assert.equal(answer(app.socket, "error", { code: "token_invalid", message: "no" }), "b b");
  await settle();
  assert.equal(app.hub.state.state, "waiting");
  assert.equal(app.hub.state.reason, "token_invalid");
  assert.equal(app.seen.errors[0].code, "token_invalid");
  await app.clock.advance(1000);
  await app.socket.welcome();
  assert.equal(answer(app.socket, "authenticated", { user: "ada" }), "c c");
  assert.equal(calls.length, 3);
  assert.equal(app.hub.state.state, "open");
});

test("a function that fails is reported and tried again after a backoff", async () => {
  const { token } = source(new Error("login is down"), "good");
  const app = start({ token });
  await settle();
  assert.equal(app.sockets.length, 0);
  assert.equal(app.seen.errors[0].code, "token_failed");
  assert.match(app.seen.errors[0].message, /login is down/);
  assert.equal(app.hub.state.state, "waiting");
  await app.clock.advance(1000);
  await app.socket.welcome();
  assert.equal(app.hub.state.state, "open");
});

test("a function that never answers is a failed attempt, and its late answer is ignored", async () => {
  const answers = [];
  const app = start({ token: () => new Promise((resolve) => answers.push(resolve)) });
  await app.clock.advance(10_000);
  assert.equal(app.hub.state.state, "waiting");
  answers[0]("late");
  await settle();
  assert.equal(app.sockets.length, 0);
});

test("a token is renewed at 80 % of its life, by the claim", async () => {
  const { token } = source(jwt({ exp: SERVER_TIME / 1000 + 100 }), "second");
  const app = start({ token });
  await app.open({ ping_interval_ms: 1e6 });
  await app.clock.advance(79_999);
  assert.deepEqual(app.socket.take("authenticate"), []);
  await app.clock.advance(1);
  assert.equal(
    answer(app.socket, "authenticated", { user: "ada", expires_at: SERVER_TIME / 1000 + 1080 }),
    "second",
  );
  // 1000 s are left at 80 s, so the next one is 800 s later.
  await app.clock.advance(799_999);
  assert.deepEqual(app.socket.take("authenticate"), []);
  await app.clock.advance(1);
  assert.equal(app.socket.take("authenticate").length, 1);
});

test("a renewal that is refused keeps the connection and is tried again", async (t) => {
  fixRandom(t, 1);
  const { token, calls } = source(jwt({ exp: SERVER_TIME / 1000 + 100 }), "b", "c", "d");
  const app = start({ token });
  await app.open({ ping_interval_ms: 1e6 });
  await app.clock.advance(80_000);
  answer(app.socket, "error", { code: "token_invalid", message: "no" });
  await settle();
  answer(app.socket, "error", { code: "token_invalid", message: "no" });
  await settle();
  assert.equal(app.hub.state.state, "open");
  assert.equal(calls.length, 3);
  await app.clock.advance(1000);
  assert.equal(answer(app.socket, "authenticated", { user: "ada" }), "d");
});

test("a renewal whose function fails is tried again", async (t) => {
  fixRandom(t, 1);
  const { token } = source(jwt({ exp: SERVER_TIME / 1000 + 100 }), new Error("down"), "c");
  const app = start({ token });
  await app.open({ ping_interval_ms: 1e6 });
  await app.clock.advance(80_000);
  assert.equal(app.seen.errors[0].code, "token_failed");
  assert.equal(app.hub.state.state, "open");
  await app.clock.advance(1000);
  assert.equal(answer(app.socket, "authenticated", { user: "ada" }), "c");
});

test("code 4001 asks for a new token at once, and then with a backoff", async () => {
  const { token, calls } = source("a", "b", "c");
  const app = start({ token });
  await app.open();
  app.socket.receive("goodbye", { code: 4001, reason: "token expired", reconnect: false });
  await app.socket.cut(4001);
  assert.equal(app.sockets.length, 2);
  assert.equal(calls.length, 2);
  await app.open();
  await app.socket.cut(4001, "token expired");
  assert.equal(app.hub.state.state, "waiting");
  await app.clock.advance(1000);
  assert.equal(calls.length, 3);
});

test("code 4001 closes a hub with a string or without a token", async () => {
  for (const options of [{ token: "a" }, {}]) {
    const app = start(options);
    await app.open();
    await app.socket.cut(4001, "token required");
    assert.deepEqual(app.seen.states.at(-1), { state: "closed", reason: "token required" });
  }
});
