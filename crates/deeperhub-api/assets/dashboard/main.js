// The page: its views, the sign-in, and the pulse of the server in its head.

import { call, hasKey, read, session, setKey, ApiError } from "./api.js";
import { client } from "./client.js";
import { clients } from "./clients.js";
import { field, h, name, setText } from "./dom.js";
import { clock } from "./format.js";
import { limits } from "./limits.js";
import { overview } from "./overview.js";
import { poll } from "./poller.js";
import { topic } from "./topic.js";
import { topics } from "./topics.js";
import { tryIt } from "./try.js";
import { warnings } from "./warnings.js";

/** Views with a place in the navigation: the path in the fragment, the label, and the functions. */
const VIEWS = [
  { path: "", label: "Overview", show: overview },
  { path: "topics", label: "Topics", show: topics, showOne: topic },
  { path: "clients", label: "Clients", show: clients, showOne: client },
  { path: "limits", label: "Limits", show: limits },
  { path: "try", label: "Try it", show: tryIt },
];

const byId = (id) => document.getElementById(id);

/** Statistics and health that every view needs, and their state in the head of the page. */
class Pulse {
  stats = null;
  health = null;

  async update(signal) {
    const [stats, health] = await Promise.all([
      read("v1/stats", { signal }),
      call("GET", "health/ready", { signal }),
    ]);
    this.stats = stats;
    this.health = health.status === 503 ? parsed(health.text) : null;
    byId("node").replaceChildren(name(stats.node_id), ` ${this.health ? "not ready" : stats.phase}`);
    byId("node").dataset.level = this.health ? "bad" : "";
    this.say(`Updated ${clock(Date.now())}`, "");
  }

  say(text, level) {
    byId("pulse").dataset.level = level;
    setText(byId("pulse"), text);
  }

  /** Tells that a call failed, and when the next one follows. */
  onFailure = (error, pause) => {
    if (error.status === 401) this.say("Waiting for the key", "poor");
    else this.say(`${error.message}; next try in ${Math.round(pause / 1000)} s`, "bad");
  };

  showWarnings(found) {
    const link = byId("views").querySelector("a");
    const count = found.filter((warning) => warning.level === "bad").length;
    link.dataset.count = count > 0 ? count : "";
    link.setAttribute("aria-label", count > 0 ? `Overview, ${count} urgent` : "Overview");
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const pulse = new Pulse();
let current = new AbortController();

function route() {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  // The path is percent-encoded, and may have been typed.
  const [place = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const [text, parameters = ""] = rest.join("/").split("?");
  const item = VIEWS.find((candidate) => candidate.path === place.split("?")[0]) ?? VIEWS[0];
  const view = h("div", { class: "view" });
  byId("view").replaceChildren(view);
  for (const link of byId("views").children) {
    if (link.dataset.path === item.path) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${item.label} – deeperhub-ws`;
  const context = { view, pulse, signal, parameters: new URLSearchParams(parameters || place.split("?")[1]) };
  const running = text && item.showOne ? item.showOne({ ...context, id: decode(text) }) : item.show(context);
  if (item.show !== overview) {
    const beat = async () => {
      await pulse.update(signal);
      pulse.showWarnings(warnings(pulse.stats, pulse.health, null, null));
    };
    void poll(beat, { signal, onFailure: pulse.onFailure });
  }
  Promise.resolve(running).catch((error) => {
    if (!signal.aborted) view.append(h("p", { class: "bad", role: "alert" }, error.message));
    if (!(error instanceof ApiError)) throw error;
  });
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Asks for the key. It stays in the memory of this page, and is gone when the page is closed. */
function signIn() {
  if (document.querySelector("dialog.sign-in")) return;
  const input = h("input", { type: "password", required: true, autocomplete: "off", spellcheck: "false" });
  const answer = h("p", { class: "bad", role: "alert" });
  const form = h(
    "form",
    { onsubmit: check },
    h("h2", { id: "sign-in-title" }, "API key"),
    h(
      "p",
      {},
      "This server needs its key (--api-key). The page keeps it in memory only: a reload asks again.",
    ),
    field("Key", input),
    answer,
    h("div", { class: "buttons" }, h("button", {}, "Sign in")),
  );
  const dialog = h("dialog", { class: "sign-in", "aria-labelledby": "sign-in-title" }, form);
  // There is nothing to see without the key.
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  const close = () => {
    dialog.close();
    dialog.remove();
    session.removeEventListener("authorized", close);
  };

  async function check(event) {
    event.preventDefault();
    setText(answer, "");
    // Other characters can be in no header, and in no key.
    if (!/^[\x21-\x7e]+$/.test(input.value)) return setText(answer, "A key is visible ASCII without spaces.");
    try {
      const { status } = await call("GET", "v1/nodes", {
        headers: { authorization: `Bearer ${input.value}` },
      });
      if (status === 401) setText(answer, "The server refuses this key.");
      else setKey(input.value);
    } catch (error) {
      setText(answer, error.message);
    }
  }

  session.addEventListener("authorized", close);
  document.body.append(dialog);
  dialog.showModal();
}

session.addEventListener("unauthorized", () => {
  byId("sign-out").hidden = true;
  signIn();
});
session.addEventListener("authorized", () => {
  byId("sign-out").hidden = !hasKey();
});
byId("sign-out").addEventListener("click", () => {
  setKey(null);
  route();
});
byId("views").append(
  ...VIEWS.map((item) => h("a", { href: `#/${item.path}`, dataset: { path: item.path } }, item.label)),
);
window.addEventListener("hashchange", () => {
  route();
  // The keyboard continues in the new view.
  byId("view").focus({ preventScroll: true });
});
route();
