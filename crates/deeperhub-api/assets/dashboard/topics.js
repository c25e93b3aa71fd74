// Topics: the busiest first, and a search.

import { read } from "./api.js";
import { figure, h, name, syncRows, table } from "./dom.js";
import { byteRate, bytes, plural, rate, short, whole } from "./format.js";
import { poll } from "./poller.js";
import { searchList } from "./search_list.js";

const MAX_BUSIEST = 50;
/** Updates of the rates after which the list, which costs the server more, is read again. */
const LIST_EVERY = 3;
/** Topics of which one call reads subscribers and history. */
const MAX_DESCRIBED = 100;

export function isPattern(topic) {
  return topic.split(".").some((level) => level === "*" || level === ">");
}

export function topicLink(topic) {
  return h("a", { href: `#/topics/${encodeURIComponent(topic)}` }, name(topic));
}

/** Returns the busy topics per second, by name. */
async function readBusy(signal) {
  const top = await read("v1/top?limit=128", { signal });
  const seconds = top.window_ms / 1000;
  const perSecond = (count) => (seconds > 0 ? count / seconds : 0);
  return new Map(
    top.topics.map((busy) => [
      busy.topic,
      {
        topic: busy.topic,
        messages: perSecond(busy.messages),
        deliveries: perSecond(busy.deliveries),
        bytes: perSecond(busy.bytes),
        behind: busy.behind,
      },
    ]),
  );
}

/** Returns subscribers and history of the first topics, by name, with one call for all of them. */
async function describe(names, signal) {
  const calls = names.slice(0, MAX_DESCRIBED).map((topic) => ({ topic: { topic } }));
  if (calls.length === 0) return new Map();
  try {
    const { results } = await read("v1/batch", { method: "POST", body: JSON.stringify({ calls }), signal });
    return new Map(results.filter((result) => result.status === 200).map(({ body }) => [body.topic, body]));
  } catch (error) {
    // Batches may be limited to fewer calls. The list is of use without the details.
    if (error.status >= 400 && error.status < 500 && error.status !== 401) return new Map();
    throw error;
  }
}

export function topics({ view, signal, pulse }) {
  const search = searchList({ label: "Prefix or pattern", placeholder: "chat. or chat.*", signal, update });
  const { element, body } = table("Topics", [
    "Topic or pattern",
    { label: "Subscribers", class: "figure" },
    { label: "Published", class: "figure" },
    { label: "Delivered", class: "figure" },
    { label: "Bytes", class: "figure" },
    { label: "Behind", class: "figure" },
    { label: "Kept", class: "figure" },
  ]);
  view.append(h("h1", {}, "Topics"), search.form, search.summary, element, search.more);

  let list = null;
  let updates = 0;

  /** Reads the topics of the list, with their subscribers and history. */
  async function readTopics(text, busiest) {
    const parameters = { [isPattern(text) ? "match" : "prefix"]: text };
    const { items, hasMore } = await search.read("v1/topics", "topics", parameters);
    const listed = new Map(items.map((topic) => [topic.topic, topic]));
    const details = await describe([...new Set([...busiest, ...listed.keys()])], signal);
    return { text, listed, details, hasMore };
  }

  async function update(isNewSearch = false) {
    updates += 1;
    const update = updates;
    const text = search.text();
    const busy = await readBusy(signal);
    const busiest = text === "" ? [...busy.keys()].slice(0, MAX_BUSIEST) : [];
    const isListOld = isNewSearch || list?.text !== text || update % LIST_EVERY === 0;
    const current = isListOld ? await readTopics(text, busiest) : list;
    // A search that started later shows its own result.
    if (update !== updates) return;
    list = current;
    const { listed, details, hasMore } = list;
    const names = [...new Set([...busiest, ...listed.keys()])];
    const rows = names.map((topic) => ({ topic, ...details.get(topic), ...listed.get(topic) }));
    const rateOf = (topic) =>
      (busy.get(topic.topic)?.messages ?? 0) + (busy.get(topic.topic)?.deliveries ?? 0);
    // The sort is stable, so quiet topics keep the server's order.
    rows.sort((a, b) => rateOf(b) - rateOf(a));
    const count = rows.length;
    const all = `${plural(pulse.stats?.topics ?? count, "topic")} and patterns; the busiest first.`;
    search.summarize(text, { count, hasMore, all });
    syncRows(
      body,
      rows,
      (topic) => topic.topic,
      (topic) => {
        const rates = busy.get(topic.topic);
        return [
          { element: topicLink(topic.topic), class: "long" },
          figure(whole(topic.subscribers)),
          figure(rate(rates?.messages ?? null)),
          figure(rate(rates?.deliveries ?? null)),
          figure(byteRate(rates?.bytes ?? null)),
          figure(rates?.behind ? whole(rates.behind) : "–", rates?.behind ? "poor" : ""),
          figure(topic.history ? `${short(topic.history.messages)}, ${bytes(topic.history.bytes)}` : "–"),
        ];
      },
    );
  }

  return poll(() => update(), { signal, onFailure: search.fail });
}
