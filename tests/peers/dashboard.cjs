// Uses the dashboard in a browser, through every view: dashboard.cjs URL KEY TOPICS [SCREENSHOTS].
// TOPICS is a JSON array of names that are subscribed to. Exits with 0 on success.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const { chromium } = require("playwright-core");
const { path, args } = require("./chromium.cjs");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [url, key, topicsText, screenshots] = process.argv.slice(2);
const topics = JSON.parse(topicsText);

/** Faults that the page reported, and paths that it called. */
const faults = [];
const called = new Set();

async function main() {
  const browser = await chromium.launch({ executablePath: path, args });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
    watch(page);
    await signIn(page);
    await overview(page);
    await everyTopic(page);
    await oneTopic(page);
    await clients(page);
    await limits(page);
    await keyboard(page);
    await away(page);
    await hidden(page);
    await tryIt(page);
    await calledPublicPaths();
    assert.deepEqual(faults, []);
    console.log("as it should be");
  } finally {
    await browser.close();
  }
}

function watch(page) {
  page.on("pageerror", (error) => faults.push(String(error)));
  // A dialog of a script would be one that a name or a payload brought.
  page.on("dialog", (dialog) => faults.push(`dialog: ${dialog.message()}`));
  page.on("console", (message) => {
    // The browser reports each answer of 4xx and 5xx, and calls that the test aborts.
    const isExpected = message.text().startsWith("Failed to load resource");
    if (message.type() === "error" && !isExpected) faults.push(message.text());
  });
  page.on("request", (request) => {
    const target = new URL(request.url());
    if (target.protocol.startsWith("http")) called.add(`${target.host}${target.pathname}`);
  });
}

/** Opens a view and waits for its heading. */
async function open(page, place, heading) {
  await page.evaluate((hash) => {
    location.hash = hash;
  }, place);
  await page.getByRole("heading", { level: 1, name: heading, exact: true }).waitFor();
}

/** Checks a view with axe, and that nothing of a name or a payload became an element. */
async function checkView(page, name) {
  await page.evaluate(axe);
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    const { violations } = await page.evaluate(() => window.axe.run());
    const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
    const found = serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
    assert.deepEqual(found, [], `${name} in ${colorScheme}`);
    if (screenshots) await page.screenshot({ path: `${screenshots}/${name}-${colorScheme}.png` });
  }
  await page.emulateMedia({ colorScheme: "light" });
  const foreign = await page.evaluate(
    () => document.querySelectorAll("main script, main img, main iframe, main b, main svg[onload]").length,
  );
  assert.equal(foreign, 0, `${name} has elements of a payload`);
  const width = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(width <= 0, `${name} is ${width} px too wide`);
}

async function signIn(page) {
  await page.goto(url);
  const field = page.getByLabel("Key", { exact: true });
  await field.fill(`${key}x`);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("The server refuses this key.").waitFor();
  await checkView(page, "sign-in");
  await field.fill(key);
  await page.keyboard.press("Enter");
  await page.locator("#pulse").filter({ hasText: "Updated" }).waitFor();
  // The key is nowhere that outlives the page.
  const stored = () =>
    JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href]);
  assert.equal((await page.evaluate(stored)).includes(key), false);
  await page.getByRole("button", { name: "Forget the key" }).click();
  await field.fill(key);
  await page.keyboard.press("Enter");
  await page.locator("#pulse").filter({ hasText: "Updated" }).waitFor();
}

async function overview(page) {
  await open(page, "#/", "Overview");
  await page.getByText("(this page)").waitFor();
  assert.equal(await page.locator(".card").count(), 12);
  for (const title of [
    "Connections",
    "Messages in",
    "Publish latency",
    "Queued to clients",
    "Slow consumers",
    "Memory",
  ]) {
    const value = page.locator(".card").filter({ hasText: title }).first().locator(".card-value");
    assert.notEqual(await value.textContent(), "", title);
  }
  const chart = page.getByRole("img", { name: /^Connections, last 15 minutes/ });
  await chart.focus();
  await page.keyboard.press("ArrowLeft");
  await chart.locator(".chart-readout").filter({ hasText: /:/ }).waitFor();
  await checkView(page, "overview");
}

async function everyTopic(page) {
  await open(page, "#/topics", "Topics");
  await search(page, "Prefix or pattern", "quiet.1");
  await page.getByRole("link", { name: "quiet.1", exact: true }).waitFor();
  await page.getByRole("link", { name: "quiet.2", exact: true }).waitFor({ state: "detached" });
  await search(page, "Prefix or pattern", "quiet.*");
  await page.getByRole("link", { name: "quiet.2", exact: true }).waitFor();
  await search(page, "Prefix or pattern", "no.such.topic");
  await page.getByText("0 matches.").waitFor();
  await search(page, "Prefix or pattern", "");
  await page.getByRole("link", { name: "kept.busy", exact: true }).waitFor();
  await checkView(page, "topics");
  for (const topic of topics) {
    await open(page, `#/topics/${encodeURIComponent(topic)}`, shown(topic));
    await page.locator("dd").first().filter({ hasText: /^\d/ }).waitFor();
  }
  await checkView(page, "hostile-topic");
}

/** Returns a name as the page shows it: invisible characters as escapes. */
function shown(text) {
  return text.replace(/[\u200b\u202a-\u202e]/g, (character) => `\\u${character.charCodeAt(0).toString(16)}`);
}

async function search(page, label, text) {
  await page.getByLabel(label).fill(text);
  await page.keyboard.press("Enter");
}

async function oneTopic(page) {
  await open(page, "#/topics/kept.busy", "kept.busy");
  await page.locator("#view").getByText("live", { exact: true }).waitFor();
  const list = page.getByRole("list", { name: "Messages, the newest first" });
  await list.getByText('"<img/src=x/onerror=alert(1)>"').first().waitFor();
  await page.getByRole("button", { name: "Pause" }).click();
  await page.getByRole("button", { name: /^Continue/ }).click();

  // Numbers keep their digits, and a huge value is folded.
  const list6000 = Array.from({ length: 6000 }, (_, index) => index);
  const huge = `{"number":12345678901234567890,"list":[${list6000}]}`;
  await act(page, "Publish", "Publish", "Done: 200", async (dialog) =>
    dialog.getByLabel("Message").fill(huge),
  );
  await list.getByText("12345678901234567890").first().waitFor();
  await list.getByText("[6000]").first().click();
  await list.getByRole("button", { name: "5900 more" }).first().waitFor();
  await checkView(page, "topic");

  await act(page, "Empty the history", "Empty it", "Done: 204");
  await list.getByText(/^Gap: the stream begins anew/).waitFor();
  await page.getByText("This topic keeps no messages").waitFor({ state: "detached" });
  await open(page, "#/topics/quiet.1", "quiet.1");
  await page.getByText("This topic keeps no messages").waitFor();
}

/** Opens an action's dialog, confirms it, and waits for the answer. */
async function act(page, label, verb, answer, fill = async () => {}) {
  await page.locator("#view").getByRole("button", { name: label, exact: true }).first().click();
  const dialog = page.getByRole("dialog");
  await fill(dialog);
  await dialog.getByRole("button", { name: verb, exact: true }).click();
  await dialog.getByText(answer).waitFor();
  await dialog.getByRole("button", { name: "Close" }).click();
  await dialog.waitFor({ state: "detached" });
}

async function clients(page) {
  await open(page, "#/clients", "Clients");
  await search(page, "User, address or ID", "127.0.0.1");
  await page.getByText(/^\d+ matches/).waitFor();
  await search(page, "User, address or ID", "ada");
  await page.getByText("1 match.").waitFor();
  await checkView(page, "clients");
  await act(page, "Send to everyone", "Send", "Done: 200");
  const link = page.getByRole("table", { name: "Clients", exact: true }).getByRole("link");
  const id = await link.textContent();
  await link.click();
  await page.getByRole("heading", { level: 1, name: id, exact: true }).waitFor();
  const row = page.getByRole("row").filter({ hasText: "kept.busy" });
  await row.locator("td").nth(1).filter({ hasText: /^\d+$/ }).waitFor();
  await act(page, "Send", "Send", "Done: 200");
  await row.getByRole("button", { name: "Unsubscribe" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("button", { name: "End it" }).click();
  await dialog.getByText('"unsubscribed"').waitFor();
  await page.keyboard.press("Escape");
  await checkView(page, "client");
  await act(page, "Disconnect", "Disconnect", "Done: 200");
  await page.getByText("This client is not connected any more.").waitFor();
}

async function limits(page) {
  await open(page, "#/limits", "Limits");
  const errors = page.getByRole("table", { name: "Errors to clients" });
  await errors.getByText("invalid_json").waitFor();
  await page.getByRole("table", { name: "Clients with errors" }).getByText("invalid_json").first().waitFor();
  await page
    .getByRole("list", { name: "Events, the newest first" })
    .getByText("invalid_json: ")
    .first()
    .waitFor();
  await checkView(page, "limits");
}

/** Goes to a topic, opens an action and leaves it, with the keyboard alone. */
async function keyboard(page) {
  const press = async (name, times = 1) => {
    for (let time = 0; time < times; time += 1) await page.keyboard.press(name);
  };
  const focused = () => page.evaluate(() => document.activeElement.textContent);
  const tabTo = async (text) => {
    for (let tabs = 0; tabs < 300; tabs += 1) {
      await press("Tab");
      if ((await focused()) === text) return;
    }
    assert.fail(`the Tab key does not reach ${text}`);
  };
  await page.reload();
  await page.getByLabel("Key", { exact: true }).waitFor();
  await page.keyboard.type(key);
  await press("Enter");
  await page.locator("#pulse").filter({ hasText: "Updated" }).waitFor();
  await tabTo("Topics");
  await press("Enter");
  await page.getByRole("link", { name: "kept.busy", exact: true }).waitFor();
  await tabTo("kept.busy");
  await press("Enter");
  await page.getByRole("button", { name: "Empty the history" }).waitFor();
  await tabTo("Empty the history");
  await press("Enter");
  await page.getByRole("dialog").waitFor();
  assert.equal(await focused(), "Cancel", "Enter does no harm");
  await press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
}

/** The server does not answer, and comes back. */
async function away(page) {
  await open(page, "#/", "Overview");
  await page.route("**/v1/**", (route) => route.abort());
  await page.locator("#pulse").filter({ hasText: "the server does not answer; next try in" }).waitFor();
  await page.unroute("**/v1/**");
  await page.locator("#pulse").filter({ hasText: "Updated" }).waitFor();
}

/** A hidden page makes no calls. */
async function hidden(page) {
  const show = (isHidden) =>
    page.evaluate((value) => {
      Object.defineProperty(document, "hidden", { value, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, isHidden);
  await page.clock.install();
  await page.reload();
  await page.getByLabel("Key", { exact: true }).fill(key);
  await page.keyboard.press("Enter");
  await page.locator("#pulse").filter({ hasText: "Updated" }).waitFor();
  await show(true);
  await page.waitForLoadState("networkidle");
  let calls = 0;
  const count = () => {
    calls += 1;
  };
  page.on("request", count);
  await page.clock.runFor(120_000);
  assert.equal(calls, 0, "a hidden page makes calls");
  await show(false);
  await page.waitForRequest("**/v1/stats");
  page.off("request", count);
  await page.clock.resume();
}

/** The client of the page, if this server has the library. */
async function tryIt(page) {
  await open(page, "#/try", "Try it");
  const library = await fetch(new URL("deeperhub.js", url));
  // A body that is not read keeps its connection, and this program, for a minute.
  await library.text();
  if (!library.ok) {
    await page.getByText("This server has no client library").waitFor();
    return;
  }
  const log = page.getByRole("list", { name: "Messages, the newest first" });
  const logged = (text) => log.getByText(text).first().waitFor();
  await page.getByRole("button", { name: "Connect", exact: true }).click();
  await page
    .locator(".badge")
    .filter({ hasText: /^connected$/ })
    .waitFor();
  await page.getByLabel("Topic or pattern").fill("kept.try");
  await page.getByRole("button", { name: "Subscribe", exact: true }).click();
  await logged("kept.try: live");
  await page.getByLabel("Topic", { exact: true }).fill("kept.try");
  await page.getByLabel("Message: JSON, or plain text").fill('{"move":"e4"}');
  await page.getByRole("button", { name: "Publish", exact: true }).click();
  await logged('"e4"');
  await page.getByRole("button", { name: "Echo" }).click();
  await logged("echo");
  await page.getByRole("button", { name: "Cut it, and publish 3 messages meanwhile" }).click();
  await logged("kept.try: live, all recovered");
  for (const number of [1, 2, 3])
    await log
      .locator(".json")
      .filter({ hasText: `"missed": ${number}` })
      .first()
      .waitFor();
  await checkView(page, "try");
  await page.getByLabel("Topic or pattern").fill("not a topic");
  await page.getByRole("button", { name: "Subscribe", exact: true }).click();
  await logged("invalid_topic");
  await page.getByRole("button", { name: "Disconnect" }).click();
  await page.locator(".badge").filter({ hasText: "closed" }).waitFor();
}

/** All that the page called is public: in the OpenAPI document, or a file of the page. */
async function calledPublicPaths() {
  const authorization = { authorization: `Bearer ${key}` };
  const document = await (await fetch(new URL("openapi.json", url), { headers: authorization })).json();
  const known = Object.keys(document.paths).map(
    (template) => new RegExp(`^${template.replaceAll(/\{\w+\}/g, "[^/]+").replaceAll(".", "\\.")}$`),
  );
  const { host } = new URL(url);
  for (const target of called) {
    const place = target.slice(host.length);
    const isPublic = known.some((pattern) => pattern.test(place));
    const isFile = place === "/" || place === "/deeperhub.js" || place.startsWith("/dashboard/");
    assert.ok(target.startsWith(host) && (isPublic || isFile), `the page called ${target}`);
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
