// A web page that uses the hub over TLS: wss.cjs WSS_URL PAGE_URL CA_FILE HOME. The browser trusts
// the authority through an entry in the certificate database of its HOME, and must refuse it before.
"use strict";

const assert = require("node:assert/strict");
const { execFileSync } = require("node:child_process");
const { mkdirSync } = require("node:fs");
const { join } = require("node:path");
const { chromium } = require("playwright-core");
const { path, args } = require("./chromium.cjs");

const [url, address, ca, home] = process.argv.slice(2);

async function inBrowser(use) {
  const browser = await chromium.launch({ executablePath: path, args, env: { ...process.env, HOME: home } });
  try {
    const page = await browser.newPage();
    await page.goto(address);
    return await use(page);
  } finally {
    await browser.close();
  }
}

// Runs in the page. Resolves with the messages, or with the close code of a failed connection.
function talk(url) {
  return new Promise((resolve) => {
    const said = [];
    const hub = new WebSocket(url, ["deeperhub.v1.json"]);
    const send = (message) => hub.send(JSON.stringify(message));
    hub.onclose = ({ code, wasClean }) => resolve({ code, wasClean, said, protocol: hub.protocol });
    hub.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      said.push(message.type);
      if (message.type === "welcome") send({ type: "subscribe", data: { topic: "over.tls" } });
      if (message.type === "subscribed") {
        send({ type: "publish", id: 1, data: { topic: "over.tls", message: "x".repeat(50000) } });
      }
      // The reply and the delivery may arrive in either order.
      if (said.includes("published") && said.includes("message")) hub.close(1000);
    };
  });
}

async function main() {
  const database = `sql:${join(home, ".pki", "nssdb")}`;
  mkdirSync(join(home, ".pki", "nssdb"), { recursive: true });
  execFileSync("certutil", ["-N", "-d", database, "--empty-password"]);

  const stranger = await inBrowser((page) => page.evaluate(talk, url));
  assert.deepEqual(stranger, { code: 1006, wasClean: false, said: [], protocol: "" });

  execFileSync("certutil", ["-A", "-d", database, "-n", "authority of a test", "-t", "C,,", "-i", ca]);
  const trusting = await inBrowser((page) => page.evaluate(talk, url));
  assert.deepEqual(trusting.said.sort(), ["message", "published", "subscribed", "welcome"]);
  assert.deepEqual([trusting.code, trusting.wasClean, trusting.protocol], [1000, true, "deeperhub.v1.json"]);
  console.log("as it should be");
}

main().catch((error) => { console.error(error); process.exit(1); });
