// Lets the TypeScript client lose its connections: client_reconnects.cjs URL API_URL. A page in a
// browser follows a topic, a program in Node.js publishes to it, and proxies before both cut their
// connections. The page must see every message once and in order. Exits with 0 on success.
"use strict";

const assert = require("node:assert/strict");
const { once } = require("node:events");
const http = require("node:http");
const net = require("node:net");
const { chromium } = require("playwright-core");
const WebSocket = require("ws");
const { Hub } = require("../../clients/typescript/dist/deeperhub.cjs");
const { path, args } = require("./chromium.cjs");

const [url, apiUrl] = process.argv.slice(2);
const MESSAGES = 3000;
const RECONNECTS = 100;

// A proxy before the hub that cuts its connections.
async function startProxy() {
  const target = new URL(url);
  const sockets = new Set();
  let accepted = 0;
  const server = net.createServer((client) => {
    accepted += 1;
    const hub = net.connect(Number(target.port), target.hostname);
    const pair = [client, hub];
    sockets.add(pair);
    client.pipe(hub);
    hub.pipe(client);
    for (const socket of pair) {
      socket.on("error", () => {});
      socket.on("close", () => {
        sockets.delete(pair);
        for (const other of pair) other.destroy();
      });
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  server.unref();
  return {
    url: `ws://127.0.0.1:${server.address().port}/`,
    accepted: () => accepted,
    // Half of the connections end with a reset, the others in good order.
    cut: () => {
      for (const [client] of sockets) {
        if (Math.random() < 0.5) client.resetAndDestroy();
        else client.destroy();
      }
    },
  };
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function main() {
  const [before, beforePublisher] = [await startProxy(), await startProxy()];
  const pageServer = http.createServer((_, response) =>
    response.setHeader("Content-Type", "text/html").end("<title>journal</title>"),
  );
  pageServer.listen(0, "127.0.0.1");
  await once(pageServer, "listening");
  pageServer.unref();
  const browser = await chromium.launch({ executablePath: path, args });
  const publisher = new Hub(beforePublisher.url, { WebSocket, minDelay: 5, maxDelay: 50 });
  try {
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${pageServer.address().port}/`);
    await page.evaluate(
      async ([module, hubUrl]) => {
        const { Hub: PageHub } = await import(module);
        const hub = new PageHub(hubUrl, { minDelay: 5, maxDelay: 50 });
        window.journal = [];
        window.errors = [];
        hub.on("error", ({ code, message }) => window.errors.push(`${code}: ${message}`));
        const feed = hub.subscribe("feed.1");
        feed.on("gap", ({ reason }) => window.journal.push(`gap ${reason}`));
        feed.on("message", async ({ message, offset }) => {
          window.journal.push([message, offset]);
          if (message % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
        });
        await feed.ready;
      },
      [`${apiUrl}/deeperhub.js`, before.url],
    );

    let isDone = false;
    const publish = (async () => {
      const published = [];
      for (let number = 1; number <= MESSAGES; number += 1) {
        published.push(publisher.publish("feed.1", number));
        if (number % 20 === 0) await Promise.all(published.splice(0));
      }
      isDone = true;
    })();
    const cut = (async () => {
      while (!isDone || before.accepted() < RECONNECTS) {
        await pause(10 + 60 * Math.random());
        before.cut();
        if (Math.random() < 0.3) beforePublisher.cut();
      }
    })();
    await Promise.all([publish, cut]);
    await page.waitForFunction((count) => window.journal.length >= count, MESSAGES, { timeout: 60_000 });
    await pause(100);

    const { journal, errors } = await page.evaluate(() => ({
      journal: window.journal,
      errors: window.errors,
    }));
    assert.deepEqual(errors, []);
    assert.deepEqual(
      journal,
      Array.from({ length: MESSAGES }, (_, index) => [index + 1, index + 1]),
    );
    console.log(
      `${MESSAGES} messages over ${before.accepted()} and ${beforePublisher.accepted()} connections`,
    );
    console.log("as it should be");
  } finally {
    await publisher.close();
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
