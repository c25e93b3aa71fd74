// Measures clients side by side and prints tables: `measure.mjs [ROUNDS]`. See `run`.
import { fork } from "node:child_process";
import { readFileSync } from "node:fs";
import { loadavg } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const directory = path.dirname(fileURLToPath(import.meta.url));
const rounds = Number(process.argv[2] ?? 5);
/** Time after which a scenario has failed. */
const TIMEOUT = 30_000;

const version = (name) =>
  JSON.parse(readFileSync(path.join(directory, "node_modules", name, "package.json"), "utf8")).version;

const NAMES = {
  deeperhub: "deeperhub (this repository)",
  centrifuge: `centrifuge ${version("centrifuge")}`,
  pusher: `pusher-js ${version("pusher-js")}`,
  bare: `ws ${version("ws")} and JSON.parse alone`,
};

async function sizes() {
  const entries = {
    [NAMES.deeperhub]: 'export { Hub } from "../../clients/typescript/dist/deeperhub.js"',
    [NAMES.centrifuge]: 'export { Centrifuge } from "centrifuge"',
    [NAMES.pusher]: 'export { default } from "pusher-js"',
    [`phoenix ${version("phoenix")}`]: 'export { Socket } from "phoenix"',
    [`socket.io-client ${version("socket.io-client")}`]: 'export { io } from "socket.io-client"',
  };
  console.log("| client | minified, bytes | minified and gzip -9, bytes |\n|---|---|---|");
  for (const [name, contents] of Object.entries(entries)) {
    const { outputFiles } = await build({
      stdin: { contents, resolveDir: directory },
      bundle: true,
      write: false,
      minify: true,
      format: "esm",
      platform: "browser",
      target: "es2020",
      legalComments: "none",
      logLevel: "error",
    });
    const code = outputFiles[0].contents;
    console.log(`| ${name} | ${code.length} | ${gzipSync(code, { level: 9 }).length} |`);
  }
}

/** Runs a scenario in a process of its own, and relays its commands to the server. */
function runScenario(server, port, scenario, client, perFrame, run) {
  const options = { execArgv: ["--expose-gc"] };
  const args = [scenario, client, port, run, perFrame];
  return new Promise((resolve, reject) => {
    const child = fork(path.join(directory, "scenario.mjs"), args, options);
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new Error(`${scenario} with ${client} did not end: a message is missing`));
    }, TIMEOUT);
    const answer = (message) => child.connected && child.send(message);
    server.on("message", answer);
    let result;
    child.on("message", (message) => {
      if (message.command) server.send(message);
      else result = message.result;
    });
    child.on("exit", (code, signal) => {
      clearTimeout(timer);
      server.off("message", answer);
      server.send({ command: "end", run });
      if (code === 0 && result) resolve(result);
      else reject(new Error(`${scenario} with ${client} failed: ${signal ?? `exit code ${code}`}`));
    });
  });
}

function summary(values, digits) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  const median = (sorted[Math.ceil(middle) - 1] + sorted[Math.floor(middle)]) / 2;
  return `${median.toFixed(digits)} (${sorted[0].toFixed(digits)}-${sorted.at(-1).toFixed(digits)})`;
}

const CASES = [
  ["cpu", "deeperhub", 1],
  ["cpu", "centrifuge", 1],
  ["cpu", "centrifuge", 16],
  ["cpu", "pusher", 1],
  ["cpu", "bare", 1],
  ["heap", "deeperhub", 1],
  ["heap", "centrifuge", 1],
  ["heap", "pusher", 1],
  ["cut", "deeperhub", 1],
  ["cut", "centrifuge", 1],
  ["cut", "pusher", 1],
];

await sizes();
const server = fork(path.join(directory, "server.mjs"));
try {
  const port = await new Promise((resolve, reject) => {
    server.once("message", (message) => resolve(message.port));
    server.once("exit", () => reject(new Error("the server ended")));
  });
  const load = loadavg()[0].toFixed(1);
  const results = CASES.map(() => []);
  for (let round = 0; round < rounds; round++) {
    for (let step = 0; step < CASES.length; step++) {
      // Each round starts with another client.
      const index = (step + round * 2) % CASES.length;
      const [scenario, client, perFrame] = CASES[index];
      const run = `r${round}s${step}`;
      results[index].push(await runScenario(server, port, scenario, client, perFrame, run));
    }
  }
  const columns = [
    "CPU µs per message",
    "heap bytes per subscription",
    "ms to be live again",
    "after a second cut",
  ];
  console.log(`\n| client | ${columns.join(" | ")} |`);
  console.log("|---|---|---|---|---|");
  for (const [, client, perFrame] of CASES.filter(([scenario]) => scenario === "cpu")) {
    const of = (scenario, part, digits) => {
      const index = CASES.findIndex((each) => String(each) === String([scenario, client, perFrame]));
      return index < 0 ? "-" : summary(results[index].flatMap((result) => result[part]), digits);
    };
    const name = NAMES[client] + (perFrame > 1 ? `, ${perFrame} messages in a frame` : "");
    console.log(
      `| ${name} | ${of("cpu", 0, 2)} | ${of("heap", 0, 0)} | ${of("cut", 0, 0)} | ${of("cut", 1, 0)} |`,
    );
  }
  const loads = `load average ${load} before and ${loadavg()[0].toFixed(1)} after`;
  console.log(`\n${rounds} rounds, Node.js ${process.version}, ${loads}`);
} finally {
  server.removeAllListeners("exit");
  server.disconnect();
}
