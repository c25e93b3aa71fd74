// The nodes of the cluster, side by side.

import { read } from "./api.js";
import { figure, h, name, syncRows, table } from "./dom.js";
import { bytes, clock, rate, short, span, whole } from "./format.js";

/** Silence after which a node is late. Nodes send a heartbeat each second. */
const LATE_MS = 3000;

/** Knows the nodes, also those that have gone while the page was open. */
export class Nodes {
  known = new Map();
  nodes = [];

  async update(stats, signal) {
    const { nodes } = await read("v1/nodes", { signal });
    const now = Date.now();
    const isCluster = nodes.length > 1 || this.known.size > 1;
    // The sums need an answer of every node, so a node without a cluster is not asked for them.
    const cluster = isCluster
      ? await read("v1/stats?scope=cluster", { signal })
      : { per_node: [stats], unanswered: [] };
    const present = new Set();
    for (const node of nodes) {
      present.add(node.node_id);
      const before = this.known.get(node.node_id);
      const numbers = cluster.per_node.find((other) => other.node_id === node.node_id) ?? null;
      this.known.set(node.node_id, {
        ...node,
        numbers,
        at: now,
        rates: numbers && rates(before, numbers, now),
        problem: cluster.unanswered.includes(node.node_id)
          ? "did not answer in time"
          : node.silent_ms > LATE_MS
            ? `is silent for ${span(node.silent_ms)}`
            : null,
      });
    }
    for (const [id, node] of this.known) {
      if (!present.has(id)) {
        const since = node.goneSince ?? now;
        this.known.set(id, {
          ...node,
          numbers: null,
          rates: null,
          goneSince: since,
          problem: `is gone since ${clock(since)}`,
        });
      }
    }
    this.nodes = [...this.known.values()].sort((a, b) => a.node_id.localeCompare(b.node_id));
  }
}

/** Returns a node's rates since the last answer. */
function rates(before, numbers, now) {
  if (!before?.numbers) return null;
  const seconds = (now - before.at) / 1000;
  const perSecond = (value) => Math.max(0, value(numbers) - value(before.numbers)) / seconds;
  return {
    received: perSecond((node) => node.messages.received_total),
    sent: perSecond((node) => node.messages.sent_total),
    errors: perSecond((node) => node.messages.errors_total),
  };
}

export function nodesTable() {
  const { element, body } = table("Nodes", [
    "Node",
    "State",
    { label: "Connections", class: "figure" },
    { label: "In", class: "figure" },
    { label: "Out", class: "figure" },
    { label: "Errors", class: "figure" },
    { label: "Queued", class: "figure" },
    { label: "Slow consumers", class: "figure" },
    { label: "Topics", class: "figure" },
    { label: "Version", class: "figure" },
  ]);
  const update = (nodes) =>
    syncRows(
      body,
      nodes,
      (node) => node.node_id,
      (node) => {
        const { numbers, rates: current, problem } = node;
        const { active, max } = numbers?.connections ?? {};
        const connections = numbers ? `${whole(active)} of ${whole(max)}` : "–";
        return [
          { element: h("span", {}, name(node.node_id), node.self ? " (this page)" : "") },
          { text: problem ?? "answers", class: problem ? "bad" : "good" },
          figure(connections),
          figure(rate(current?.received)),
          figure(rate(current?.sent)),
          figure(rate(current?.errors)),
          figure(bytes(numbers?.bytes.queued)),
          figure(short(numbers?.connections.slow_total)),
          figure(short(numbers?.topics)),
          figure(node.version),
        ];
      },
    );
  return { element, update };
}
