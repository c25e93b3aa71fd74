// Overview: numbers with their last 15 minutes, what is wrong, and the nodes.

import { LineChart } from "./chart.js";
import { h, setText, sync } from "./dom.js";
import { byteRate, bytes, micros, percent, plural, rate, short, span, whole } from "./format.js";
import { Nodes, nodesTable } from "./nodes.js";
import { poll } from "./poller.js";
import { Samples } from "./samples.js";
import { warnings } from "./warnings.js";

/** Returns the newest value of points that is known. */
function last(points) {
  return points.at(-1)?.value ?? null;
}

/**
 * Cards of the overview. `value` returns the number, `note` a text below it, `lines` the points of
 * the chart; `warnings` are those that make the card red. A card with `isShown` is left out unless
 * that returns `true`.
 */
const CARDS = [
  {
    title: "Connections",
    format: short,
    warnings: ["connections"],
    value: (stats) => whole(stats.connections.active),
    note: (stats) => `of ${whole(stats.connections.max)} at most`,
    lines: (samples) => [samples.values("connections")],
  },
  {
    title: "Messages in",
    format: rate,
    warnings: [],
    value: (_, samples) => rate(last(samples.rates("received_total"))),
    note: (stats) => `${short(stats.messages.received_total)} since the start`,
    lines: (samples) => [samples.rates("received_total")],
  },
  {
    title: "Messages out",
    format: rate,
    warnings: [],
    value: (_, samples) => rate(last(samples.rates("sent_total"))),
    note: (stats) => `${short(stats.messages.sent_total)} since the start`,
    lines: (samples) => [samples.rates("sent_total")],
  },
  {
    title: "Bytes",
    format: byteRate,
    labels: ["in", "out"],
    warnings: [],
    value: (_, samples) => `${byteRate(last(samples.rates("received_bytes_total")))} in`,
    note: (_, samples) => `${byteRate(last(samples.rates("sent_bytes_total")))} out`,
    lines: (samples) => [samples.rates("received_bytes_total"), samples.rates("sent_bytes_total")],
  },
  {
    title: "Publish latency",
    format: micros,
    labels: ["median", "99 %"],
    warnings: ["latency"],
    value: (stats) => micros(stats.publish_latency?.p50_us),
    note: (stats) => `99 % within ${micros(stats.publish_latency?.p99_us)}`,
    lines: (samples) => [samples.values("latency_p50_us"), samples.values("latency_p99_us")],
  },
  {
    title: "Queued to clients",
    format: bytes,
    warnings: [],
    value: (stats) => bytes(stats.bytes.queued),
    note: (stats) => `for ${plural(stats.connections.active, "connection")}`,
    lines: (samples) => [samples.values("queued_bytes")],
  },
  {
    title: "Slow consumers",
    format: rate,
    warnings: ["slow"],
    value: (_, samples) => whole(samples.growth("slow_total")),
    note: (stats) => `in 15 minutes; ${short(stats.connections.slow_total)} since the start`,
    lines: (samples) => [samples.rates("slow_total")],
  },
  {
    title: "Errors",
    format: rate,
    warnings: ["errors", "refused"],
    value: (_, samples) => rate(last(samples.rates("errors_total"))),
    note: (stats) => `${short(stats.messages.errors_total)} since the start`,
    lines: (samples) => [samples.rates("errors_total")],
  },
  {
    title: "Memory",
    format: bytes,
    warnings: ["memory"],
    value: (stats) => bytes(stats.memory?.used ?? stats.process?.resident_bytes),
    note: ({ memory }) =>
      memory ? `${percent(memory.used / memory.limit)} of ${bytes(memory.limit)}` : "no limit",
    lines: (samples) => [samples.values("memory_bytes")],
  },
  {
    title: "CPU",
    format: percent,
    warnings: [],
    value: (_, samples) => percent(last(cores(samples))),
    note: (stats) => `of one core; ${plural(stats.workers, "worker")}`,
    lines: (samples) => [cores(samples)],
  },
  {
    title: "Probe round trip",
    format: micros,
    labels: ["worker", "broker"],
    warnings: ["canary"],
    value: (stats) => micros(stats.canary.round_trip_us),
    note: ({ canary }) =>
      canary.cluster_round_trip_us === null
        ? "through every worker"
        : `${micros(canary.cluster_round_trip_us)} through the broker`,
    lines: (samples) => [
      samples.values("canary_round_trip_us"),
      samples.values("canary_cluster_round_trip_us"),
    ],
  },
  {
    title: "Subscriptions behind",
    format: short,
    warnings: [],
    value: (stats) => whole(stats.history.behind),
    note: ({ history }) => `${plural(history.messages, "message")} kept, ${bytes(history.bytes)}`,
    lines: (samples) => [samples.values("behind")],
  },
  {
    title: "History store",
    format: micros,
    labels: ["round trip"],
    warnings: ["health-store_stalled-", "health-cluster_unavailable-"],
    isShown: (stats) => stats.store !== null,
    value: ({ store }) => (store.reachable ? micros(store.round_trip_us) : "unreachable"),
    note: ({ store }, samples) =>
      (store.reachable ? "reachable; " : "") +
      `${plural(store.waiting_appends, "publish waits", "publishes wait")}, ` +
      `${short(last(samples.rates("store_reads_total")))} reads/s`,
    lines: (samples) => [samples.values("store_round_trip_us")],
  },
];

function cores(samples) {
  return samples
    .rates("cpu_ms_total")
    .map(({ at, value }) => ({ at, value: value === null ? null : value / 1000 }));
}

class Card {
  constructor(card) {
    this.card = card;
    this.chart = new LineChart(card.title, card.labels ?? [card.title], card.format);
    this.value = h("p", { class: "card-value" });
    this.note = h("p", { class: "card-note" });
    this.element = h(
      "section",
      { class: "card", "aria-label": card.title },
      h("h2", {}, card.title),
      this.value,
      this.note,
      this.chart.element,
    );
  }

  update(stats, samples, level) {
    setText(this.value, this.card.value(stats, samples));
    setText(this.note, this.card.note(stats, samples));
    this.element.dataset.level = level ?? "";
    this.chart.draw(this.card.lines(samples), samples.now());
  }
}

export function overview({ view, pulse, signal }) {
  const cards = CARDS.map((card) => new Card(card));
  const list = h("ul", { class: "warnings", "aria-label": "Warnings" });
  const facts = h("p", { class: "facts" });
  const grid = h("div", { class: "cards" });
  const table = nodesTable();
  const samples = new Samples();
  const nodes = new Nodes();
  view.append(
    h("h1", {}, "Overview"),
    list,
    facts,
    grid,
    h("h2", {}, "Nodes"),
    table.element,
  );

  function show() {
    const { stats, health } = pulse;
    const found = warnings(stats, health, samples, nodes.nodes);
    showWarnings(list, found);
    pulse.showWarnings(found);
    const shown = cards.filter(({ card }) => card.isShown?.(stats) ?? true);
    const levelOf = ({ card }) => found.find((warning) => card.warnings.includes(warning.id))?.level;
    sync(
      grid,
      shown,
      ({ card }) => card.title,
      (card) => card.element,
      (_, card) => card.update(stats, samples, levelOf(card)),
    );
    setText(
      facts,
      `${plural(stats.subscriptions, "subscription")} to ${plural(stats.topics, "topic")} and patterns. ` +
        `Up for ${span(stats.uptime_ms)}, version ${stats.version}.`,
    );
    table.update(nodes.nodes);
  }

  return poll(
    async () => {
      await pulse.update(signal);
      await samples.update(pulse.stats.node_id, signal);
      await nodes.update(pulse.stats, signal);
      show();
    },
    { signal, onFailure: pulse.onFailure },
  );
}

function showWarnings(list, found) {
  const create = () => h("li", {}, h("strong"), h("span"));
  const update = (item, warning) => {
    item.className = warning.level;
    setText(item.children[0], warning.what);
    setText(item.children[1], warning.remedy);
  };
  const calm = {
    id: "calm",
    level: "good",
    what: "Nothing is wrong.",
    remedy: "Every check of this page passes.",
  };
  sync(list, found.length > 0 ? found : [calm], (warning) => warning.id, create, update);
}
