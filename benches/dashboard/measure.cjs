#!/usr/bin/env node
// Measures the CPU time that open dashboards cost the server, view by view:
//
//     cargo build --release && benches/dashboard/measure.cjs [BINARY] [SECONDS]
//
// Starts the server, 10,000 clients on 1,000 topics with 80 messages a second, and a browser with ten
// pages (`tests/peers/install node chromium`). Each view is open for SECONDS (30), between two spans
// without a page. Prints the part of one core that the server used more than in these spans.
"use strict";

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const path = require("node:path");
const root = path.join(__dirname, "../..");
const { chromium } = require(path.join(root, "tests/peers/node_modules/playwright-core"));
const browserOptions = require(path.join(root, "tests/peers/chromium.cjs"));

const binary = process.argv[2] ?? path.join(root, "target/release/deeperhub-ws");
const seconds = Number(process.argv[3] ?? 30);
const PAGES = 10;
const CLIENTS = 10_000;

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Returns the CPU time of a process in seconds: of all its threads, to the nanosecond. */
function cpuSeconds(pid) {
  const threads = fs.readdirSync(`/proc/${pid}/task`);
  const times = threads.map(
    (id) => fs.readFileSync(`/proc/${pid}/task/${id}/schedstat`, "utf8").split(" ")[0],
  );
  return times.reduce((sum, time) => sum + Number(time) / 1e9, 0);
}

/** Starts a server on free ports. Resolves to its process, its WebSocket URL, and its API. */
function startServer() {
  const flags = ["--port", "0", "--api-listen", "127.0.0.1:0", "--max-connections", "12000"];
  const limits = ["--burst-rate-per-ip", "0", "--topic", "kept.>: history=100"];
  const server = spawn(binary, [...flags, ...limits], { stdio: ["ignore", "pipe", "ignore"] });
  return new Promise((resolve, reject) => {
    let text = "";
    server.on("exit", (code) => reject(new Error(`the server ended with ${code}`)));
    server.stdout.on("data", (chunk) => {
      text += chunk;
      const found = /(ws:\/\/\S+) .*\(API (http:\/\/[^)]+)\)/.exec(text);
      if (found) resolve({ server, url: found[1], api: `${found[2]}/` });
    });
  });
}

async function startLoad(url, api) {
  const flags = ["--url", `${url}/`, "--topics", "1000", "--subscribers", String(CLIENTS), "--rate", "80"];
  const load = spawn(binary, ["bench", "topics", ...flags, "--duration", "1h"], { stdio: "ignore" });
  const isRunning = async () => (await (await fetch(`${api}v1/stats`)).json()).connections.active > CLIENTS;
  for (let tries = 0; tries < 120 && !(await isRunning()); tries += 1) await sleep(1000);
  if (!(await isRunning())) throw new Error("the clients did not connect");
  // The first round of topics is slower than the rest.
  await sleep(15_000);
  return load;
}

/** Returns the part of one core that the server used within the next seconds. */
async function share(pid) {
  const [before, start] = [cpuSeconds(pid), process.hrtime.bigint()];
  await sleep(seconds * 1000);
  return (cpuSeconds(pid) - before) / (Number(process.hrtime.bigint() - start) / 1e9);
}

async function main() {
  const { server, url, api } = await startServer();
  let load = null;
  let browser = null;
  try {
    load = await startLoad(url, api);
    await fetch(`${api}v1/topics/kept.one/messages`, { method: "POST", body: "1" });
    const { clients } = await (await fetch(`${api}v1/clients?limit=1`)).json();
    const views = ["", "topics", "topics/kept.one", "clients", `clients/${clients[0].client_id}`, "limits"];
    browser = await chromium.launch({ executablePath: browserOptions.path, args: browserOptions.args });
    console.log("| ten pages of | calls a second | % of a core, with them | without them | difference |");
    console.log("|---|---|---|---|---|");
    let idle = await share(server.pid);
    for (const view of views) {
      const contexts = [];
      let calls = 0;
      for (let count = 0; count < PAGES; count += 1) {
        // Pages of one context would share six connections, which streams may take up.
        const context = await browser.newContext();
        contexts.push(context);
        context.on("request", () => {
          calls += 1;
        });
        const page = await context.newPage();
        await page.goto(`${api}#/${view}`);
        // The pages of ten people do not call at the same moment.
        await sleep(500);
      }
      calls = 0;
      const busy = await share(server.pid);
      const callsPerSecond = (calls / seconds).toFixed(1);
      await Promise.all(contexts.map((context) => context.close()));
      // Counting of the busiest topics stops half a minute after its last call.
      await sleep(35_000);
      const after = await share(server.pid);
      const percent = (value) => (value * 100).toFixed(2);
      const without = (idle + after) / 2;
      const label = view.replace(clients[0].client_id, "ID") || "overview";
      console.log(
        `| ${label} | ${callsPerSecond} | ${percent(busy)} | ${percent(without)} | ${percent(busy - without)} |`,
      );
      idle = after;
    }
  } finally {
    await browser?.close();
    load?.kill();
    server.removeAllListeners("exit");
    server.kill();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
