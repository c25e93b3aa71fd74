// Limits: what was refused or lost and why, and the last events.

import { read, readEvents } from "./api.js";
import { button, figure, h, name, setText, syncRows, table } from "./dom.js";
import { clock, rate, whole } from "./format.js";
import { GROUPS } from "./limit_groups.js";
import { parseMetrics } from "./metrics.js";
import { follow, poll, sleep } from "./poller.js";
import { clientLink } from "./tail.js";

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
    const { texts } = this.group;
    const now = Date.now();
    const counts = countsOf(this.group, metrics);
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

/** Returns the counters of a group: of one metric by its label, or of several metrics by their names. */
function countsOf({ metric, label, texts }, metrics) {
  if (metric)
    return new Map((metrics.get(metric) ?? []).map((sample) => [sample.labels[label], sample.value]));
  const found = Object.keys(texts).filter((key) => metrics.has(key));
  return new Map(found.map((key) => [key, metrics.get(key)[0].value]));
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
