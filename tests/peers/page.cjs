// Uses the try-out page in a browser: page.cjs URL [SCREENSHOT]. Exits with 0 on success.
"use strict";

const assert = require("node:assert/strict");
const { chromium } = require("playwright-core");
const { path, args } = require("./chromium.cjs");

const [url, screenshot] = process.argv.slice(2);

async function main() {
  const browser = await chromium.launch({ executablePath: path, args });
  try {
    const page = await browser.newPage({ viewport: { width: 1000, height: 760 } });
    const faults = [];
    page.on("pageerror", (error) => faults.push(String(error)));
    page.on("console", (message) => { if (message.type() === "error") faults.push(message.text()); });
    await page.goto(url);

    const logged = (text) => page.locator("#log li").filter({ hasText: text }).first().waitFor();
    await page.getByRole("button", { name: "Connect", exact: true }).click();
    await page.locator("#state").filter({ hasText: /^connected$/i }).waitFor();
    await logged('"type":"welcome"');
    await page.getByLabel("Topic or pattern").fill("sports.*");
    await page.getByRole("button", { name: "Subscribe", exact: true }).click();
    await logged('"type":"subscribed"');
    await page.getByLabel("Topic", { exact: true }).fill("sports.chess");
    await page.getByLabel("Message (").fill('{"move":"e4","clock":12345678901234567890}');
    await page.getByRole("button", { name: "Publish" }).click();
    await logged('"type":"published"');
    // Unchanged: JavaScript would have rounded the number.
    await logged('"message":{"move":"e4","clock":12345678901234567890}');
    await page.getByLabel("Message (").fill("no JSON");
    await page.getByRole("button", { name: "Echo" }).click();
    await logged('"data":"no JSON"');
    await page.getByLabel("Topic or pattern").fill("not a topic");
    await page.getByRole("button", { name: "Subscribe", exact: true }).click();
    await logged('"code":"invalid_topic"');
    if (screenshot) await page.screenshot({ path: screenshot });

    await page.getByRole("button", { name: "Disconnect" }).click();
    await logged("closed with 1000");
    assert.deepEqual(faults, []);
    console.log("as it should be");
  } finally {
    await browser.close();
  }
}

main().catch((error) => { console.error(error); process.exit(1); });
