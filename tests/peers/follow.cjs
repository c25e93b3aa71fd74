// Uses the page of the book that follows topics: follow.cjs FILE URL. It publishes, is away, comes
// back, and sees the server restart: that happens when this has printed "restart". Exits with 0 on
// success.
"use strict";

const assert = require("node:assert/strict");
const { once } = require("node:events");
const { readFileSync } = require("node:fs");
const http = require("node:http");
const { chromium } = require("playwright-core");
const WebSocket = require("ws");
const { path, args } = require("./chromium.cjs");

const [file, url] = process.argv.slice(2);

// Publishes a message and waits until the hub has it.
function publish(topic, message) {
  return new Promise((resolve, reject) => {
    const hub = new WebSocket(url);
    hub.on("open", () => hub.send(JSON.stringify({ type: "publish", id: 1, data: { topic, message } })));
    hub.on("error", reject);
    hub.on("message", (text) => {
      const { type, data } = JSON.parse(text);
      if (type === "welcome") return;
      hub.close();
      if (type === "published") resolve(data);
      else reject(new Error(String(text)));
    });
  });
}

// Serves the page on loopback, from where it may connect to a hub on loopback.
async function serve() {
  const html = readFileSync(file, "utf8").replace("ws://localhost:8080", url);
  const server = http.createServer((_, response) => response.setHeader("Content-Type", "text/html").end(html));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  server.unref();
  return `http://127.0.0.1:${server.address().port}/`;
}

async function main() {
  const address = await serve();
  const browser = await chromium.launch({ executablePath: path, args });
  try {
    const page = await browser.newPage();
    const faults = [];
    page.on("pageerror", (error) => faults.push(String(error)));
    const lines = () => page.locator("#lines li").allTextContents();
    const shown = (text) => page.locator("#lines li").filter({ hasText: text }).first().waitFor();

    // The first visit shows the last messages, then live ones.
    await publish("chat.1", "before");
    await page.goto(address);
    await shown("before");
    await publish("chat.1", "live");
    await shown("live");

    // The page is away, and comes back to what it missed.
    await page.goto("about:blank");
    for (let number = 1; number <= 30; number += 1) await publish("chat.1", number);
    await page.goto(address);
    await shown("chat.1: 30");
    const numbers = Array.from({ length: 30 }, (_, index) => `chat.1: ${index + 1}`);
    const expected = ['chat.1: "before"', 'chat.1: "live"', ...numbers];
    assert.deepEqual(await lines(), expected);

    // A restart ends the streams in memory. The page says so, and goes on.
    console.log("restart");
    await shown("chat.1: messages are missing (epoch)");
    await shown("chat.2: messages are missing (epoch)");
    await publish("chat.1", "after");
    await shown("after");
    const missing = ["chat.1", "chat.2"].map((topic) => `${topic}: messages are missing (epoch)`);
    assert.deepEqual(await lines(), [...expected, ...missing, 'chat.1: "after"']);
    assert.deepEqual(faults, []);
    console.log("as it should be");
  } finally {
    await browser.close();
  }
}

main().catch((error) => { console.error(error); process.exit(1); });
