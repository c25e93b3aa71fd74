// Try it: a client in the page, on the same library that applications use.

import { payload } from "./actions.js";
import { path, read } from "./api.js";
import { button, field, h, name, setText, visible } from "./dom.js";
import { clock, plural } from "./format.js";
import { jsonView } from "./json.js";
import { tappedWebSocket } from "./wire.js";

const MAX_LINES = 300;

/** Returns the hub's address: the server's own, or a guess if it listens on all interfaces. */
function hubUrl() {
  const known = document.querySelector('meta[name="websocket-url"]').content;
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  return known || `${scheme}://${location.hostname || "localhost"}:8080/`;
}

export async function tryIt({ view, signal, parameters }) {
  const given = parameters.get("topic") || "news";
  view.append(h("h1", {}, "Try it"));
  let library;
  try {
    library = await import(new URL("deeperhub.js", document.baseURI));
  } catch {
    view.append(
      h("p", { class: "bad" }, "This server has no client library, so there is nothing to try with."),
    );
    return;
  }
  const desk = new Desk(library.Hub, given);
  view.append(...desk.elements());
  signal.addEventListener("abort", () => desk.disconnect());
}

/** The forms, the subscriptions and the log. */
class Desk {
  hub = null;
  socket = null;
  subscriptions = new Map();

  constructor(Hub, given) {
    this.Hub = Hub;
    this.url = h("input", { type: "url", value: hubUrl(), required: true, spellcheck: "false" });
    this.token = h("input", {
      type: "password",
      autocomplete: "off",
      spellcheck: "false",
      placeholder: "none",
    });
    this.pattern = h("input", { value: given, required: true, maxlength: "255", spellcheck: "false" });
    this.history = h("input", { type: "number", min: "0", max: "1000", value: "10" });
    this.topic = h("input", {
      value: given.includes("*") || given.includes(">") ? "news" : given,
      required: true,
      maxlength: "255",
      spellcheck: "false",
    });
    this.message = h("input", { value: '{"hello":"world"}', spellcheck: "false" });
    this.state = h("span", { class: "badge", role: "status" }, "not connected");
    this.toggle = h("button", {}, "Connect");
    this.list = h("ul", { class: "subscriptions", "aria-label": "Subscriptions" });
    this.log = h("ol", { class: "log", "aria-label": "Messages, the newest first", tabindex: "0" });
    this.wire = h("ol", {
      class: "log wire",
      "aria-label": "Texts on the wire, the newest first",
      tabindex: "0",
    });
  }

  elements() {
    const submit = (action) => (event) => {
      event.preventDefault();
      action.call(this);
    };
    const needsHub = { class: "needs-hub" };
    this.connected = h(
      "fieldset",
      { ...needsHub, disabled: true },
      h("legend", { class: "unseen" }, "Messages"),
      h(
        "form",
        { class: "line", onsubmit: submit(this.subscribe) },
        field("Topic or pattern", this.pattern),
        field("Kept messages", this.history, "short"),
        h("button", {}, "Subscribe"),
      ),
      this.list,
      h(
        "form",
        { class: "line", onsubmit: submit(this.publish) },
        field("Topic", this.topic),
        field("Message: JSON, or plain text", this.message),
        h("button", {}, "Publish"),
        button("Echo", () => this.echo(), "quiet"),
      ),
      h(
        "div",
        { class: "buttons" },
        button("Cut the connection", () => this.cut(), "quiet"),
        button("Cut it, and publish 3 messages meanwhile", () => this.cutAndPublish(), "quiet"),
      ),
    );
    return [
      h(
        "form",
        { class: "line", onsubmit: submit(this.hubToggled) },
        field("Hub", this.url),
        field("Token", this.token),
        this.toggle,
        this.state,
      ),
      this.connected,
      h("h2", {}, "Messages"),
      this.log,
      h("details", {}, h("summary", {}, "On the wire"), this.wire),
    ];
  }

  hubToggled() {
    if (this.hub) this.disconnect();
    else this.connect();
  }

  connect() {
    const WebSocketClass = tappedWebSocket({
      onText: (direction, text) => this.line(this.wire, direction, h("code", {}, visible(text))),
      onSocket: (socket) => {
        this.socket = socket;
      },
    });
    try {
      this.hub = new this.Hub(this.url.value, {
        token: this.token.value || undefined,
        WebSocket: WebSocketClass,
      });
    } catch (error) {
      this.note("error", error.message);
      return;
    }
    this.hub.on("state", (state) => this.onState(state));
    this.hub.on("error", (error) => this.note("error", `${error.code}: ${error.message}`));
    this.connected.disabled = false;
    setText(this.toggle, "Disconnect");
  }

  disconnect() {
    const { hub } = this;
    this.hub = null;
    this.subscriptions.clear();
    this.list.replaceChildren();
    this.connected.disabled = true;
    setText(this.toggle, "Connect");
    if (hub) void hub.close();
  }

  onState({ state, reason, until }) {
    const wait = until ? `, next attempt ${clock(until)}` : "";
    setText(this.state, state === "open" ? "connected" : state);
    this.state.dataset.level = state === "open" ? "good" : "";
    this.note("state", `Connection: ${state}${reason ? ` (${reason})` : ""}${wait}`);
    if (state === "closed" && this.hub) this.disconnect();
  }

  subscribe() {
    const topic = this.pattern.value.trim();
    if (this.subscriptions.has(topic)) return this.note("state", `${topic} is subscribed already.`);
    const history = Number(this.history.value);
    const subscription = this.hub.subscribe(topic, history > 0 ? { history } : {});
    const state = h("span", { role: "status" }, "subscribing");
    const item = h(
      "li",
      {},
      name(topic),
      " ",
      state,
      " ",
      button(
        "Unsubscribe",
        () => {
          subscription.unsubscribe();
          this.subscriptions.delete(topic);
          item.remove();
        },
        "quiet",
      ),
    );
    this.subscriptions.set(topic, subscription);
    this.list.append(item);
    subscription.on("state", (change) => {
      const recovered =
        change.recovered === undefined ? "" : change.recovered ? ", all recovered" : ", not recovered";
      setText(state, `${change.state}${recovered}${change.reason ? ` (${change.reason})` : ""}`);
      this.note("state", h("span", {}, name(topic), `: ${state.textContent}`));
      if (change.state === "ended") {
        this.subscriptions.delete(topic);
        item.remove();
      }
    });
    subscription.on("gap", (gap) => {
      const range = gap.from === undefined ? "" : ` ${gap.from} to ${gap.to}`;
      this.note("error", h("span", {}, name(topic), `: gap${range} (${gap.reason})`));
    });
    subscription.on("message", (message) => this.onMessage(message));
    // The end of a subscription is told by its state.
    subscription.ready.catch(() => {});
  }

  onMessage({ topic, message, from, offset }) {
    const about = [
      offset === undefined ? "" : ` #${offset}`,
      from === undefined ? " from a backend" : [" from ", name(from)],
    ];
    this.line(this.log, "message", h("span", {}, name(topic), about), jsonView(JSON.stringify(message), 1));
  }

  async publish() {
    const topic = this.topic.value.trim();
    await this.answered(async () => {
      const { subscribers, offset } = await this.hub.publish(topic, JSON.parse(payload(this.message.value)));
      const place = offset === undefined ? "" : `, kept as #${offset}`;
      this.note(
        "state",
        h("span", {}, "Published to ", name(topic), `: ${plural(subscribers, "subscription")}${place}`),
      );
    });
  }

  async echo() {
    await this.answered(async () => {
      const answer = await this.hub.echo(JSON.parse(payload(this.message.value)));
      this.line(this.log, "message", h("span", {}, "echo"), jsonView(JSON.stringify(answer), 1));
    });
  }

  /** Closes the socket as a lost network would. The library reconnects and recovers. */
  cut() {
    this.note("state", "Connection cut.");
    this.socket?.close();
  }

  async cutAndPublish() {
    this.cut();
    await this.answered(async () => {
      for (let number = 1; number <= 3; number += 1) {
        const body = JSON.stringify({ missed: number });
        await read(path`v1/topics/${this.topic.value.trim()}/messages`, { method: "POST", body });
      }
      this.note(
        "state",
        h("span", {}, "Published 3 messages to ", name(this.topic.value.trim()), " over the server API."),
      );
    });
  }

  async answered(action) {
    try {
      await action();
    } catch (error) {
      this.note("error", error.code ? `${error.code}: ${error.message}` : error.message);
    }
  }

  note(kind, content) {
    this.line(this.log, kind, typeof content === "string" ? visible(content) : content);
  }

  line(list, kind, ...content) {
    list.prepend(h("li", { dataset: { kind } }, h("time", {}, clock(Date.now())), content));
    while (list.childElementCount > MAX_LINES) list.lastElementChild.remove();
  }
}
