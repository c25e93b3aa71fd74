// Watches the store of a cluster in the dashboard while its broker is killed:
// dashboard_store.cjs URL PID [SCREENSHOT]. Exits with 0 if the page tells so.
"use strict";

const { chromium } = require("playwright-core");
const { path, args } = require("./chromium.cjs");

const [url, pid, screenshot] = process.argv.slice(2);

async function main() {
  const browser = await chromium.launch({ executablePath: path, args });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 1100 } });
    await page.goto(url);
    const card = page.getByRole("region", { name: "History store", exact: true });
    const value = card.locator(".card-value");
    await value.filter({ hasText: /[0-9] (µs|ms|s)$/ }).waitFor();
    await card.getByText(/^reachable; 0 publishes wait, [0-9.]+ reads\/s$/).waitFor();
    if (screenshot) await page.screenshot({ path: screenshot });
    process.kill(Number(pid), "SIGKILL");
    await value.filter({ hasText: "unreachable" }).waitFor();
    await page.locator('.card[data-level="bad"]').filter({ hasText: "History store" }).waitFor();
    if (screenshot) await page.screenshot({ path: screenshot.replace(/\.png$/, "-away.png") });
    console.log("as it should be");
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
