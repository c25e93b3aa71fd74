// The messages of one topic, live.

import { path, readEvents } from "./api.js";
import { button, h, name, setText } from "./dom.js";
import { bytes, clock, plural, whole } from "./format.js";
import { jsonView, member } from "./json.js";
import { follow, sleep } from "./poller.js";

const MAX_SHOWN = 100;
/** Messages that a pause, or the time between two updates, keeps. */
const MAX_WAITING = 100;
const UPDATE_MS = 250;

/** Shows the last messages of a topic and those that come, until the signal aborts. */
export function tail(parent, topic, signal) {
  const list = h("ol", { class: "messages", "aria-label": "Messages, the newest first", tabindex: "0" });
  const status = h("span", { role: "status" });
  const pause = button("Pause", () => setPaused(!isPaused), "quiet");
  const clear = button("Clear", () => list.replaceChildren(), "quiet");
  parent.append(h("h2", {}, "Messages"), h("div", { class: "buttons" }, pause, clear, status), list);

  let isPaused = false;
  let waiting = [];
  let skipped = 0;
  let position = null;

  function setPaused(value) {
    isPaused = value;
    pause.setAttribute("aria-pressed", String(value));
    if (!value) flush();
    showPause();
  }

  function showPause() {
    setText(pause, isPaused ? `Continue (${plural(waiting.length + skipped, "new message")})` : "Pause");
  }

  function onEvent(event) {
    if (event.id !== undefined) position = event.id;
    if (event.data === undefined) return;
    waiting.push({ ...event, at: Date.now() });
    if (waiting.length > MAX_WAITING) {
      waiting.shift();
      skipped += 1;
    }
  }

  function flush() {
    if (skipped > 0)
      list.prepend(h("li", { class: "note" }, `${plural(skipped, "message")} not shown: too many at once`));
    list.prepend(...waiting.splice(0).reverse().map(row));
    skipped = 0;
    while (list.childElementCount > MAX_SHOWN) list.lastElementChild.remove();
  }

  async function update() {
    while (!signal.aborted) {
      if (isPaused) showPause();
      else if (waiting.length > 0) flush();
      await sleep(UPDATE_MS, signal);
    }
  }

  void update();
  void follow(
    async (visible) => {
      const headers = position === null ? {} : { "last-event-id": position };
      const from = position === null ? "?from=-10" : "";
      const onOpen = () => setText(status, "live");
      await readEvents(path`v1/topics/${topic}/tail` + from, { signal: visible, headers, onEvent, onOpen });
    },
    { signal, say: (text) => setText(status, text) },
  );
}

function row(event) {
  if (event.event === "gap") {
    const gap = JSON.parse(event.data);
    const range =
      gap.from === undefined
        ? "the stream begins anew"
        : `messages ${whole(gap.from)} to ${whole(gap.to)} are lost`;
    return h("li", { class: "note" }, `Gap: ${range} (${gap.reason})`);
  }
  const message = member(event.data, "message") ?? event.data;
  const { offset, time, from } = JSON.parse(event.data);
  return h(
    "li",
    {},
    h(
      "p",
      { class: "message-head" },
      h("span", {}, `#${whole(offset)}`),
      h("time", {}, clock(time ?? event.at)),
      h("span", {}, bytes(message.length)),
      from === undefined ? "from a backend" : h("span", {}, "from ", clientLink(from)),
    ),
    jsonView(message, 1),
  );
}

export function clientLink(id) {
  return h("a", { href: `#/clients/${encodeURIComponent(id)}` }, name(id));
}
