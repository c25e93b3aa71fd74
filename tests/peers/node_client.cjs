// A client on the package `ws`: node_client.cjs URL. Exits with 0 on success.
"use strict";

const assert = require("node:assert/strict");
const { once } = require("node:events");
const WebSocket = require("ws");

const url = process.argv[2];
setTimeout(() => { throw new Error("it took too long"); }, 60_000).unref();

/** Connects, and gives messages one after the other. */
async function connect(options) {
  const socket = new WebSocket(url, "deeperhub.v1.json", options);
  const waiting = [];
  const come = [];
  socket.on("message", (data, isBinary) => {
    assert.equal(isBinary, false);
    const text = data.toString();
    if (waiting.length > 0) waiting.shift()(text); else come.push(text);
  });
  await once(socket, "open");
  assert.equal(socket.protocol, "deeperhub.v1.json");
  const receive = () => come.length > 0 ? Promise.resolve(come.shift()) : new Promise((resolve) => waiting.push(resolve));
  const ask = async (message) => { socket.send(JSON.stringify(message)); return JSON.parse(await receive()); };
  const welcome = JSON.parse(await receive());
  assert.equal(welcome.type, "welcome");
  return { socket, receive, ask, id: welcome.data.client_id };
}

async function main() {
  const compressed = await connect({ perMessageDeflate: true });
  const plain = await connect({ perMessageDeflate: false });
  assert.match(compressed.socket.extensions, /permessage-deflate/);
  assert.equal(plain.socket.extensions, "");

  const message = { text: "grüße \u{1f44b}", large: "x".repeat(20_000), list: [1.5, null, true] };
  for (const client of [compressed, plain]) {
    assert.deepEqual(await client.ask({ type: "echo", id: 1, data: message }), { type: "echo", id: 1, data: message });
    const reply = await client.ask({ type: "subscribe", id: "s", data: { topic: "news" } });
    assert.deepEqual(reply, { type: "subscribed", id: "s", data: { topic: "news" } });
  }
  const reply = await plain.ask({ type: "publish", id: 2, data: { topic: "news", message, exclude_self: true } });
  assert.deepEqual(reply, { type: "published", id: 2, data: { topic: "news", subscribers: 1 } });
  const delivery = { type: "message", data: { topic: "news", message, from: plain.id } };
  assert.deepEqual(JSON.parse(await compressed.receive()), delivery);

  // Payloads keep their bytes, which JavaScript would change.
  compressed.socket.send('{"type":"echo","data":{"n" : 12345678901234567890.10}}');
  assert.equal(await compressed.receive(), '{"type":"echo","data":{"n" : 12345678901234567890.10}}');

  plain.socket.ping("are you there");
  assert.equal((await once(plain.socket, "pong"))[0].toString(), "are you there");
  assert.deepEqual(await plain.ask({ type: "ping", id: 3 }), { type: "pong", id: 3 });
  const error = await plain.ask({ type: "nonsense" });
  assert.deepEqual([error.type, error.data.code, error.data.field], ["error", "unknown_type", "type"]);

  plain.socket.close(3210, "done");
  assert.equal((await once(plain.socket, "close"))[0], 3210);
  compressed.socket.send("x".repeat(100_000));
  assert.equal((await once(compressed.socket, "close"))[0], 1009);
  console.log("as it should be");
}

main().catch((error) => { console.error(error); process.exit(1); });
