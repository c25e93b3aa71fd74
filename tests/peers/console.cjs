// Runs lines in a browser's console: console.cjs PAGE LINES TEXT. Exits with 0 if TEXT was logged.
"use strict";

const { chromium } = require("playwright-core");
const { path, args } = require("./chromium.cjs");

const [page_url, lines, text] = process.argv.slice(2);

async function main() {
  const browser = await chromium.launch({ executablePath: path, args });
  try {
    const page = await browser.newPage();
    await page.goto(page_url);
    const logged = page.waitForEvent("console", (message) => message.text().includes(text));
    await page.evaluate(`${lines}; 0`);
    console.log((await logged).text());
  } finally {
    await browser.close();
  }
}

main().catch((error) => { console.error(error); process.exit(1); });
