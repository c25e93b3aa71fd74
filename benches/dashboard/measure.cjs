#!/usr/bin/env node
// Measures the CPU time that ten open dashboards cost the server, view by view:
//
//     cargo build --release && benches/dashboard/measure.cjs [BINARY]
//
// Starts the server, 10,000 clients on 1,000 topics with 80 messages a second, and a browser
// (`tests/peers/install node chromium`). Records the calls that a page of each view makes within half a
// minute, then repeats each of them 400 times. A few calls a second would be lost in the noise of the
// server's other work. Streams of messages and events are left out: they cost what their traffic costs.
"use strict";

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const root = path.join(__dirname, "../..");
const { chromium } = require(path.join(root, "tests/peers/node_modules/playwright-core"));
const browserOptions = require(path.join(root, "tests/peers/chromium.cjs"));

const binary = process.argv[2] ?? path.join(root, "target/release/deeperhub-ws");
const PAGES = 10;
const RECORD_SECONDS = 30;
const REPEATS = 400;
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
async function share(pid, seconds) {
  const [before, start] = [cpuSeconds(pid), process.hrtime.bigint()];
  await sleep(seconds * 1000);
  return (cpuSeconds(pid) - before) / (Number(process.hrtime.bigint() - start) / 1e9);
}

/** Opens a view, and returns the calls that its page makes: how often, and one of them to repeat. */
async function recordCalls(browser, address) {
  const page = await browser.newPage();
  await page.goto(address);
  // The first calls also bring files, and all samples.
  await sleep(3000);
  const calls = new Map();
  page.on("request", (request) => {
    const { pathname, search } = new URL(request.url());
    if (/\/(tail|events)$/.test(pathname)) return;
    // Only the time after which samples are asked for differs from call to call.
    const key = `${request.method()} ${pathname}${search.replace(/after=\d+/, "after=…")}`;
    const known = calls.get(key) ?? { method: request.method(), count: 0 };
    calls.set(key, { ...known, count: known.count + 1, path: pathname + search, body: request.postData() });
  });
  await sleep(RECORD_SECONDS * 1000);
  await page.close();
  return calls;
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function call(api, { method, path: callPath, body }) {
  return new Promise((resolve, reject) => {
    const request = http.request(new URL(callPath, api), { method, agent }, (response) => {
      response.on("end", resolve);
      response.resume();
    });
    request.on("error", reject);
    request.end(body ?? undefined);
  });
}

/** Returns the CPU time of the server for one call, in microseconds. */
async function costOf(target, pid, api, idle) {
  const [before, start] = [cpuSeconds(pid), process.hrtime.bigint()];
  for (let repeat = 0; repeat < REPEATS; repeat += 1) await call(api, target);
  const seconds = Number(process.hrtime.bigint() - start) / 1e9;
  return ((cpuSeconds(pid) - before - idle * seconds) / REPEATS) * 1e6;
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
    const idle = await share(server.pid, 15);
    browser = await chromium.launch({ executablePath: browserOptions.path, args: browserOptions.args });
    const recorded = await Promise.all(views.map((view) => recordCalls(browser, `${api}#/${view}`)));
    await browser.close();
    console.log("| ten pages of | calls a second | CPU µs per call | % of a core |\n|---|---|---|---|");
    for (const [index, calls] of recorded.entries()) {
      let [perSecond, micros] = [0, 0];
      for (const target of calls.values()) {
        const rate = (target.count / RECORD_SECONDS) * PAGES;
        perSecond += rate;
        micros += rate * (await costOf(target, server.pid, api, idle));
      }
      const label = views[index].replace(clients[0].client_id, "ID") || "overview";
      const perCall = (micros / perSecond).toFixed(0);
      console.log(`| ${label} | ${perSecond.toFixed(1)} | ${perCall} | ${(micros / 1e4).toFixed(2)} |`);
    }
    console.log(`\nWithout a page, the server used ${(idle * 100).toFixed(2)} % of a core.`);
  } finally {
    agent.destroy();
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
