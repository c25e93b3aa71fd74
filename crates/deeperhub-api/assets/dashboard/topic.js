// One topic: subscribers, rates, kept messages, actions, and its messages live.

import { act, payload } from "./actions.js";
import { path, read } from "./api.js";
import { button, field, h, name, setText, visible } from "./dom.js";
import { byteRate, bytes, plural, rate, whole } from "./format.js";
import { poll } from "./poller.js";
import { tail } from "./tail.js";
import { isPattern } from "./topics.js";

const MAX_BUSIEST = 128;

/** Returns a list of facts, and a function that shows their texts. */
export function facts(labels) {
  const values = labels.map(() => h("dd"));
  const element = h(
    "dl",
    { class: "facts" },
    labels.map((label, index) => h("div", {}, h("dt", {}, label), values[index])),
  );
  return { element, show: (texts) => texts.forEach((text, index) => setText(values[index], visible(text))) };
}

export function topic({ view, signal, id }) {
  const pattern = isPattern(id);
  const labels = pattern
    ? ["Subscribers"]
    : [
        "Subscribers",
        "Published",
        "Delivered",
        "Bytes",
        "Subscriptions behind",
        "Kept messages",
        "Kept bytes",
        "Oldest offset",
        "Newest offset",
        "Epoch",
      ];
  const list = facts(labels);
  const status = h("p", { role: "status" });
  const live = h("section", { "aria-label": "Messages" });
  const empty = button("Empty the history", () => emptyHistory(id), "harmful");
  empty.hidden = true;
  const actions = h(
    "div",
    { class: "buttons" },
    pattern ? null : button("Publish", () => publish(id)),
    empty,
    button("End all subscriptions", () => endSubscriptions(id), "harmful"),
  );
  view.append(
    h("p", {}, h("a", { href: "#/topics" }, "Topics")),
    h("h1", { class: "long" }, name(id)),
    status,
    list.element,
    actions,
    live,
  );
  let hasTail = false;
  let before = null;

  function showLive(history) {
    if (pattern) return;
    if (history && !hasTail) {
      live.replaceChildren();
      tail(live, id, signal);
      hasTail = true;
    } else if (!hasTail && live.childElementCount === 0) {
      live.append(
        h("h2", {}, "Messages"),
        h(
          "p",
          {},
          "This topic keeps no messages, so there is nothing to read here. ",
          h("a", { href: `#/try?topic=${encodeURIComponent(id)}` }, "Subscribe to it in Try it"),
          ", or give it a history with --topic.",
        ),
      );
    }
  }

  return poll(
    async () => {
      const [found, top] = await Promise.all([
        read(path`v1/topics/${id}`, { signal }),
        read(`v1/top?limit=${MAX_BUSIEST}`, { signal }),
      ]);
      const { history } = found;
      const busy = top.topics.find((other) => other.topic === id);
      // A quiet topic may be missing in a full list, so its rates are unknown.
      const isListFull = top.topics.length >= MAX_BUSIEST;
      const perSecond = (key) => {
        if (top.window_ms === 0 || (!busy && isListFull)) return null;
        return busy ? busy[key] / (top.window_ms / 1000) : 0;
      };
      const published = keptRate(before, history) ?? perSecond("messages");
      before = history ? { history, at: Date.now() } : null;
      setText(status, "");
      list.show(
        [
          whole(found.subscribers),
          rate(published),
          rate(perSecond("deliveries")),
          byteRate(perSecond("bytes")),
          whole(busy?.behind ?? 0),
          whole(history?.messages),
          bytes(history?.bytes),
          whole(history?.oldest),
          whole(history?.offset),
          history?.epoch ?? "–",
        ].slice(0, labels.length),
      );
      empty.hidden = !history;
      showLive(history);
    },
    { signal, onFailure: (error) => setText(status, error.message) },
  );
}

/** Returns the messages per second between two reads of a topic's history, or null if unknown. */
function keptRate(before, history) {
  if (!before || !history || before.history.epoch !== history.epoch) return null;
  return (history.offset - before.history.offset) / ((Date.now() - before.at) / 1000);
}

function publish(id) {
  const message = h("textarea", { rows: "6", spellcheck: "false", value: '{"hello":"world"}' });
  return act({
    title: "Publish",
    effect: h("span", {}, "Publishes a message to the subscribers of ", name(id), " on all nodes."),
    verb: "Publish",
    method: "POST",
    path: path`v1/topics/${id}/messages`,
    inputs: [field("Message: JSON, or plain text", message)],
    body: () => payload(message.value),
  });
}

function emptyHistory(id) {
  return act({
    title: "Empty the history?",
    verb: "Empty it",
    isHarmful: true,
    method: "DELETE",
    path: path`v1/topics/${id}/messages`,
    effect: h(
      "span",
      {},
      "Drops all kept messages of ",
      name(id),
      ". Subscribers stay, and are told of the gap. ",
      "Clients that come back cannot recover what they missed.",
    ),
  });
}

async function endSubscriptions(id) {
  const { subscribers } = await read(path`v1/topics/${id}`);
  return act({
    title: "End all subscriptions?",
    verb: "End them",
    isHarmful: true,
    method: "DELETE",
    path: path`v1/topics/${id}/subscriptions`,
    effect: h(
      "span",
      {},
      `Ends ${plural(subscribers, "subscription")} to `,
      name(id),
      " here, and those on other nodes. ",
      "The clients are told, and may subscribe again.",
    ),
  });
}
