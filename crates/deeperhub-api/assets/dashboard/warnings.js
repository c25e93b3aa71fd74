// Conditions that an operator should know of: each with its reason and a remedy.

import { bytes, micros, percent, plural, span, whole } from "./format.js";

/** Share of a limit from which a value is close to it. */
const NEARLY = 0.9;
/** Publish latency from which clients notice it. */
const LATE_US = 1_000_000;
/** Time that counters look back. */
const RECENT_MS = 5 * 60_000;

const REMEDIES = {
  delivery_stalled:
    "A worker hangs or is overloaded. The log names it. If it does not recover, restart the node: its " +
    "clients reconnect to the others.",
  cluster_unavailable:
    "Check the broker and the network to it. Clients of this node get messages of this node only.",
  cluster_stalled: "The broker is connected but late. Check its load and the network to it.",
  store_stalled:
    "The broker carries messages, but does not keep those of topics with history. Check its memory, its load " +
    "and the rights of its user: config check names what it lacks.",
  history_unavailable: "Publishes to topics with history fail. Check the disk and the folder of the history.",
  draining: "The node shuts down. Its clients are told when to reconnect.",
  starting: "The node starts. Wait for a moment.",
};

/**
 * Returns the current warnings as `{id, level, what, remedy}`; a `level` of `bad` needs action now,
 * `poor` soon. `samples` may be null while they are not read.
 */
export function warnings(stats, health, samples, nodes) {
  const found = [...healthWarnings(health), ...limitWarnings(stats)];
  if (samples) found.push(...recentWarnings(stats, samples));
  if (nodes) found.push(...nodeWarnings(nodes));
  return found.sort((a, b) => (a.level === b.level ? 0 : a.level === "bad" ? -1 : 1));
}

function healthWarnings(health) {
  return (health?.reasons ?? []).map((reason) => ({
    id: `health-${reason.code}-${reason.worker ?? ""}`,
    level: "bad",
    what:
      `Not ready: ${reason.message}` +
      (reason.since_unix_ms ? `, for ${span(Date.now() - reason.since_unix_ms)}` : ""),
    remedy: REMEDIES[reason.code] ?? "The log of the node says more.",
  }));
}

function limitWarnings(stats) {
  const found = [];
  const { active, max } = stats.connections;
  if (active >= max * NEARLY) {
    found.push({
      id: "connections",
      level: active >= max ? "bad" : "poor",
      what: `${whole(active)} of ${whole(max)} connections are open`,
      remedy: "Further clients get 503. Raise --max-connections, which a reload applies, or add a node.",
    });
  }
  const { memory } = stats;
  if (memory && memory.used >= memory.limit * 0.8) {
    const isShedding = memory.used >= memory.limit * NEARLY;
    found.push({
      id: "memory",
      level: isShedding ? "bad" : "poor",
      what: `${percent(memory.used / memory.limit)} of ${bytes(memory.limit)} of memory are in use`,
      remedy: isShedding
        ? "Connections that hold the most are closed. Give the process more memory, or lower queue limits."
        : "New connections are refused. Give the process more memory, or lower --history-bytes.",
    });
  }
  if (stats.canary.failing_workers > 0) {
    found.push({
      id: "canary",
      level: "bad",
      what: `${plural(stats.canary.failing_workers, "worker")} did not return the last probe`,
      remedy: REMEDIES.delivery_stalled,
    });
  }
  const late = stats.publish_latency?.p99_us ?? 0;
  if (late >= LATE_US) {
    found.push({
      id: "latency",
      level: "poor",
      what: `1 of 100 deliveries takes longer than ${micros(late)}`,
      remedy:
        "Clients read slowly, or the node is overloaded. Compare CPU and queues, and the busiest topics.",
    });
  }
  return found;
}

function recentWarnings(stats, samples) {
  const found = [];
  const slow = samples.growth("slow_total", RECENT_MS);
  if (slow > 0) {
    found.push({
      id: "slow",
      level: "bad",
      what: `${plural(slow, "slow consumer")} closed with 1013 within 5 minutes`,
      remedy:
        "They read more slowly than messages came. Give their topics a history, so that they catch up, " +
        "or raise --max-queue-bytes.",
    });
  }
  const [errors, received] = [
    samples.growth("errors_total", RECENT_MS),
    samples.growth("received_total", RECENT_MS),
  ];
  if (errors > 10 && errors > received * 0.05) {
    found.push({
      id: "errors",
      level: "poor",
      what: `${percent(errors / Math.max(received, errors))} of the messages got an error`,
      remedy: "The view Limits counts errors by code, and shows which clients get them.",
    });
  }
  const refused = samples.growth("refused_total", RECENT_MS);
  if (refused > 10) {
    found.push({
      id: "refused",
      level: "poor",
      what: `${plural(refused, "handshake")} failed within 5 minutes`,
      remedy: "The view Limits says why: a limit, a token, an origin, or TLS.",
    });
  }
  if (stats.worker_restarts_total > 0) {
    found.push({
      id: "restarts",
      level: "poor",
      what: `${plural(stats.worker_restarts_total, "worker")} died and got replaced since the start`,
      remedy: "Please report the panic that the log shows. The clients of the worker had to reconnect.",
    });
  }
  return found;
}

function nodeWarnings(nodes) {
  return nodes
    .filter((node) => node.problem)
    .map((node) => ({
      id: `node-${node.node_id}`,
      level: "bad",
      what: `Node ${node.node_id} ${node.problem}`,
      remedy: "Is its process running, and does it reach the broker? Its clients go to other nodes.",
    }));
}
