// Uses the examples of the TypeScript client in a browser: client_examples.cjs chat|prices URL API_URL.
// The hub is killed and started again when this has printed "kill" and "start". Exits with 0 on
// success.
"use strict";

const assert = require("node:assert/strict");
const { once } = require("node:events");
const { readFileSync } = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const { chromium } = require("playwright-core");
const { path: executablePath, args } = require("./chromium.cjs");

const [name, url, apiUrl] = process.argv.slice(2);
const EXAMPLES = path.join(__dirname, "../../clients/typescript/examples");

// Serves an example on loopback, from where it may connect to a hub on loopback.
async function serve() {
  const html = readFileSync(path.join(EXAMPLES, `${name}.html`), "utf8");
  for (const text of ["ws://localhost:8080", "http://127.0.0.1:8081"]) assert.ok(html.includes(text), text);
  const page = html.replaceAll("ws://localhost:8080", url).replaceAll("http://127.0.0.1:8081", apiUrl);
  const server = http.createServer((_, response) =>
    response.setHeader("Content-Type", "text/html").end(page),
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  server.unref();
  return `http://127.0.0.1:${server.address().port}/`;
}

async function open(browser, address, faults) {
  const page = await browser.newPage();
  page.on("pageerror", (error) => faults.push(String(error)));
  await page.goto(address);
  await page
    .locator("#state")
    .filter({ hasText: /^open$/ })
    .waitFor();
  return page;
}

// Says what the test has to do now, and waits until it has done it.
async function ask(what) {
  console.log(what);
  if (what === "kill") return;
  process.stdin.resume();
  await once(process.stdin, "data");
  process.stdin.pause();
}

async function chat(browser, address, faults) {
  const [ada, bob] = [await open(browser, address, faults), await open(browser, address, faults)];
  const say = async (page, text) => {
    await page.getByLabel("Message").fill(text);
    await page.getByRole("button", { name: "Send" }).click();
  };
  const lines = (page) => page.locator("#lines li").allTextContents();
  const shown = (page, text) => page.locator("#lines li").filter({ hasText: text }).first().waitFor();
  await ada.getByLabel("Name").fill("ada");
  await bob.getByLabel("Name").fill("bob");
  await say(ada, "hello");
  await shown(bob, "hello");
  await say(bob, "<b>hi</b>");
  await shown(ada, "<b>hi</b>");

  // Messages that are sent while the hub is away arrive once it is back.
  await ask("kill");
  await ada
    .locator("#state")
    .filter({ hasText: /^not connected/ })
    .waitFor();
  await say(ada, "anyone there?");
  await ask("start");
  for (const page of [ada, bob])
    await page
      .locator("#state")
      .filter({ hasText: /^open$/ })
      .waitFor();
  await shown(ada, "anyone there?");
  await say(bob, "yes");
  for (const page of [ada, bob]) await shown(page, "yes");

  // Bob's page may come back after Ada's, and misses then what she said: the page says so.
  const missing = "messages are missing (epoch)";
  const expected = ["adahello", "bob<b>hi</b>", missing, "adaanyone there?", "bobyes"];
  assert.deepEqual(await lines(ada), expected);
  assert.deepEqual(
    (await lines(bob)).filter((line) => line !== "adaanyone there?"),
    expected.filter((line) => line !== "adaanyone there?"),
  );

  // A page that is loaded later gets what is kept.
  await bob.reload();
  await shown(bob, "yes");
  assert.deepEqual(await lines(bob), ["adaanyone there?", "bobyes"]);
}

async function prices(browser, address, faults) {
  const page = await open(browser, address, faults);
  const received = async () => Number(await page.locator("#ALPHA td").nth(2).textContent());
  const published = async () => Number(await page.locator("#ALPHA td").nth(1).textContent());
  const until = async (condition) => {
    while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 50));
  };
  await page.getByLabel("Publish").check();
  await until(async () => (await received()) >= 4);
  // Most prices are skipped, without a word of missing ones.
  const counts = [await received(), await published()];
  assert.ok(counts[0] * 2 <= counts[1], `${counts[0]} of ${counts[1]} prices`);

  await ask("kill");
  await page.locator("#ALPHA.stale").waitFor();
  await ask("start");
  await page.locator("#ALPHA:not(.stale)").waitFor();
  const before = await received();
  await until(async () => (await received()) >= before + 2);
  await page.getByLabel("Publish").uncheck();
  // A page that is loaded later has the last price at once.
  await page.reload();
  await page.locator("#HOTEL td").first().waitFor();
  for (const price of await page.locator("#rows td:nth-child(2)").all())
    await until(async () => /^\d+\.\d\d$/.test(await price.textContent()));
}

async function main() {
  const address = await serve();
  const browser = await chromium.launch({ executablePath, args });
  try {
    const faults = [];
    await { chat, prices }[name](browser, address, faults);
    assert.deepEqual(faults, []);
    console.log("as it should be");
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
