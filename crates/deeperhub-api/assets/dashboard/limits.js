// Limits: what was refused or lost and why, and the last events.

import { read, readEvents } from "./api.js";
import { button, figure, h, name, setText, syncRows, table } from "./dom.js";
import { clock, rate, whole } from "./format.js";
import { parseMetrics } from "./metrics.js";
import { follow, poll, sleep } from "./poller.js";
import { clientLink } from "./tail.js";

/** Metrics of this view: the counters of one, by a label, or several without labels. */
const GROUPS = [
  {
    title: "Messages over a limit",
    metric: "deeperhub_messages_limited_total",
    label: "limit",
    note: "Refused, or only counted with --limits observe.",
    texts: {
      messages: "messages of a connection (--rate-limit)",
      bytes: "bytes of a connection (--byte-rate-limit)",
      tokens: "authenticate messages (--token-rate-limit)",
      subscriptions: "subscriptions (--max-subscriptions)",
      control: "pings and pongs (--control-rate-limit)",
      json_depth: "nesting (--max-json-depth)",
      first_burst: "bursts of new connections (--burst-rate-per-ip)",
    },
  },
  {
    title: "Connections over a limit",
    metric: "deeperhub_connections_limited_total",
    label: "limit",
    note: "Per address: refused, or only counted with --limits observe.",
    texts: {
      max_connections: "connections (--max-connections)",
      max_connections_per_ip: "of an address (--max-connections-per-ip)",
      connection_rate_per_ip: "new ones of an address (--connection-rate-per-ip)",
    },
  },
  {
    title: "Handshakes",
    metric: "deeperhub_handshakes_total",
    label: "outcome",
    note: "By outcome.",
    texts: {
      accepted: "accepted",
      refused: "refused: a limit, a token, an origin, a bad request",
      timed_out: "too slow (--handshake-timeout)",
      lost: "the client went away",
      tls_failed: "TLS failed",
      proxy_failed: "PROXY header missing or wrong",
    },
  },
  {
    title: "Refused client certificates",
    metric: "deeperhub_tls_client_auth_refused_total",
    label: "reason",
    note: "In the TLS handshake, with --tls-client-ca.",
    texts: {},
  },
  {
    title: "Errors to clients",
    metric: "deeperhub_errors_total",
    label: "code",
    note: "Replies of type error, by code.",
    texts: {},
  },
  {
    title: "Closed connections",
    metric: "deeperhub_connections_closed_total",
    label: "by",
    note: "By close code, or by who ended them.",
    texts: {
      client: "closed by the client",
      lost: "connection lost",
      1001: "1001: shutdown",
      1002: "1002: broken frames",
      1007: "1007: not UTF-8",
      1008: "1008: kept violating rate limits",
      1009: "1009: message too big",
      1011: "1011: fault of the server",
      1013: "1013: slow consumer",
      4001: "4001: token missing or expired",
      4003: "4003: disconnected over the API",
      4200: "4200: no sign of life",
    },
  },
  {
    title: "Recoveries",
    metric: "deeperhub_recoveries_total",
    label: "result",
    note: "Subscribes with a position, by result.",
    texts: {
      recovered: "recovered: nothing is missing",
      epoch: "epoch: the stream is another one",
      ahead: "ahead: the position is too new",
      trimmed: "trimmed: older than what is kept",
      no_history: "no_history: the topic keeps nothing",
      pattern: "pattern: patterns cannot recover",
      overlap: "overlap: subscribed already",
    },
  },
  {
    title: "Gaps",
    metric: "deeperhub_gaps_total",
    label: "reason",
    note: "What subscribers were told they do not get.",
    texts: {
      trimmed: "trimmed: fell out of the history",
      dropped: "dropped: by the topic's delivery",
      conflated: "conflated: only the newest counts",
      lost: "lost",
      epoch: "epoch: the stream began anew",
    },
  },
  {
    title: "Evicted from the history",
    metric: "deeperhub_history_evicted_total",
    label: "reason",
    note: "By reason.",
    texts: {
      messages: "messages: the rule's count",
      bytes: "bytes: the rule's bytes",
      ttl: "ttl: their age",
      budget: "budget: --history-bytes is too small",
      removed: "removed",
    },
  },
];

const MAX_EVENTS = 200;
const EVENT_TYPES = "websocket_error,websocket_disconnected";
const UPDATE_MS = 500;

export function limits({ view, signal }) {
  const status = h("p", { role: "status" });
  const groups = GROUPS.map((group) => new Group(group));
  view.append(
    h("h1", {}, "Limits"),
    status,
    h(
      "div",
      { class: "groups" },
      groups.map((group) => group.element),
    ),
  );
  eventLog(view, signal);
  return poll(
    async () => {
      const metrics = parseMetrics(await read("metrics", { signal }));
      for (const group of groups) group.update(metrics);
      setText(status, "");
    },
    { signal, onFailure: (error) => setText(status, error.message) },
  );
}

/** A table of one metric's counters. */
class Group {
  constructor(group) {
    this.group = group;
    this.first = null;
    this.last = null;
    const { element, body } = table(group.title, [
      "",
      { label: "Now", class: "figure" },
      { label: "Since opened", class: "figure" },
      { label: "Total", class: "figure" },
    ]);
    this.body = body;
    this.never = h("p");
    this.table = element;
    this.element = h(
      "section",
      { class: "group" },
      h("h2", {}, group.title),
      h("p", {}, group.note),
      element,
      this.never,
    );
  }

  update(metrics) {
    const { metric, label, texts } = this.group;
    const now = Date.now();
    const counts = new Map((metrics.get(metric) ?? []).map((sample) => [sample.labels[label], sample.value]));
    this.first ??= counts;
    const rows = [...counts].map(([key, total]) => {
      const since = total - (this.first.get(key) ?? 0);
      const perSecond = this.last
        ? (total - (this.last.counts.get(key) ?? 0)) / ((now - this.last.at) / 1000)
        : null;
      return { key, total, since, perSecond };
    });
    this.last = { counts, at: now };
    const textOf = (row) => texts[row.key] ?? row.key;
    const happened = rows.filter((row) => row.total > 0).sort((a, b) => b.total - a.total);
    syncRows(
      this.body,
      happened,
      (row) => row.key,
      (row) => [
        { text: textOf(row) },
        figure(rate(row.perSecond)),
        figure(whole(row.since)),
        figure(whole(row.total)),
      ],
    );
    this.table.hidden = happened.length === 0;
    const others = rows.filter((row) => row.total === 0).map(textOf);
    setText(this.never, others.length > 0 ? `Never: ${others.join("; ")}.` : "");
  }
}

/** Shows the events since the view was opened, and which clients got errors. */
function eventLog(view, signal) {
  const status = h("span", { role: "status" });
  const list = h("ol", { class: "events", "aria-label": "Events, the newest first", tabindex: "0" });
  const pause = button(
    "Pause",
    () => {
      isPaused = !isPaused;
      pause.setAttribute("aria-pressed", String(isPaused));
      setText(pause, isPaused ? "Continue" : "Pause");
    },
    "quiet",
  );
  const limited = table("Clients with errors", [
    "Client",
    "Error",
    { label: "Times", class: "figure" },
    "Last",
  ]);
  view.append(
    h("h2", {}, "Clients with errors"),
    h("p", {}, "Since this view was opened. Code rate_limited names those that are limited."),
    limited.element,
    h("h2", {}, "Last events"),
    h("div", { class: "buttons" }, pause, status),
    list,
  );
  let isPaused = false;
  let waiting = [];
  const errors = new Map();

  function onEvent({ event, data }) {
    if (data === undefined) return;
    const details = JSON.parse(data);
    waiting.push({ event, details });
    if (waiting.length > MAX_EVENTS) waiting.shift();
    if (event !== "websocket_error") return;
    const key = `${details.client_id} ${details.code}`;
    const entry = errors.get(key) ?? { key, client: details.client_id, code: details.code, count: 0 };
    errors.delete(key);
    errors.set(key, { ...entry, count: entry.count + 1, at: details.at_unix_ms });
    // The first key is the one whose last error is the longest ago.
    if (errors.size > MAX_EVENTS) errors.delete(errors.keys().next().value);
  }

  async function update() {
    while (!signal.aborted) {
      if (!isPaused && waiting.length > 0) {
        list.prepend(...waiting.splice(0).reverse().map(eventRow));
        while (list.childElementCount > MAX_EVENTS) list.lastElementChild.remove();
        const worst = [...errors.values()].sort((a, b) => b.count - a.count).slice(0, 20);
        syncRows(
          limited.body,
          worst,
          (entry) => entry.key,
          (entry) => [
            { element: clientLink(entry.client) },
            { text: entry.code },
            figure(whole(entry.count)),
            { text: clock(entry.at) },
          ],
        );
      }
      await sleep(UPDATE_MS, signal);
    }
  }

  void update();
  void follow(
    async (visible) => {
      const onOpen = () => setText(status, "live");
      await readEvents(`v1/events?types=${EVENT_TYPES}`, { signal: visible, onEvent, onOpen });
    },
    { signal, say: (text) => setText(status, text) },
  );
}

function eventRow({ event, details }) {
  const head = [h("time", {}, clock(details.at_unix_ms)), " ", clientLink(details.client_id), " "];
  if (event === "websocket_error") {
    return h("li", { class: "bad" }, head, `${details.code}: `, name(details.message));
  }
  if (event === "websocket_disconnected") {
    const code = details.code === null ? "without a code" : `with ${details.code}`;
    return h("li", {}, head, `closed ${code}`, details.reason ? [": ", name(details.reason)] : "");
  }
  // `events_lost` has no client.
  return h("li", { class: "bad" }, `${whole(details.count)} events were too many for this page`);
}
