// Watches the nodes of a cluster in the dashboard while one of them is killed:
// dashboard_nodes.cjs URL NODE PID [SCREENSHOT]. Exits with 0 if the page tells so.
"use strict";

const { chromium } = require("playwright-core");
const { path, args } = require("./chromium.cjs");

const [url, node, pid, screenshot] = process.argv.slice(2);

async function main() {
  const browser = await chromium.launch({ executablePath: path, args });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 1100 } });
    await page.goto(url);
    const cell = page.getByRole("cell", { name: node, exact: true });
    const row = page.getByRole("table", { name: "Nodes" }).getByRole("row").filter({ has: cell });
    await row.getByText("answers").waitFor();
    process.kill(Number(pid), "SIGKILL");
    await row.getByText(/did not answer in time|is silent for|is gone since/).waitFor();
    await page.getByRole("list", { name: "Warnings" }).getByText(`Node ${node}`).waitFor();
    await row.getByText(/is gone since/).waitFor({ timeout: 60_000 });
    if (screenshot) await page.screenshot({ path: screenshot });
    console.log("as it should be");
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
