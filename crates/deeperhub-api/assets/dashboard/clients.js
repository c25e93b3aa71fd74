// Clients: a list with a search, and the busiest ones.

import { act } from "./actions.js";
import { read } from "./api.js";
import { button, field, figure, h, name, setText, syncRows, table } from "./dom.js";
import { byteRate, bytes, plural, rate, short, span, whole } from "./format.js";
import { poll } from "./poller.js";
import { clientLink } from "./tail.js";
import { readList } from "./topics.js";

const PAGE = 100;
/** Time between two updates. A page of clients costs the server more than its statistics. */
const INTERVAL_MS = 10_000;

export function clients({ view, signal, pulse }) {
  const input = h("input", {
    type: "search",
    maxlength: "255",
    spellcheck: "false",
    placeholder: "ada, 192.0.2.7 or an ID",
  });
  const everywhere = h("input", { type: "checkbox" });
  const scope = h("label", { class: "check", hidden: true }, everywhere, "all nodes");
  const summary = h("p", { role: "status" });
  const list = table("Clients", [
    "Client",
    "User",
    "Address",
    { label: "Connected for", class: "figure" },
    { label: "Subscriptions", class: "figure" },
    { label: "Behind", class: "figure" },
    { label: "Queued", class: "figure" },
    { label: "Received", class: "figure" },
    { label: "Sent", class: "figure" },
  ]);
  const busiest = table("Busiest clients", [
    "Client",
    { label: "Messages", class: "figure" },
    { label: "Bytes", class: "figure" },
  ]);
  const more = button(
    "Show more",
    () => {
      limit = Math.min(limit + PAGE, 1000);
      void refresh();
    },
    "quiet",
  );
  more.hidden = true;
  let limit = PAGE;

  const form = h(
    "form",
    {
      class: "search",
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        limit = PAGE;
        void refresh();
      },
    },
    field("User, address or ID", input),
    scope,
    h("button", {}, "Search"),
  );
  view.append(
    h("h1", {}, "Clients"),
    form,
    summary,
    list.element,
    more,
    h(
      "div",
      { class: "buttons" },
      button("Send to everyone", () => broadcast(), "quiet"),
    ),
    h("h2", {}, "Busiest clients"),
    h("p", {}, "By messages to the hub within the last seconds."),
    busiest.element,
  );

  let updates = 0;

  async function update() {
    updates += 1;
    const update = updates;
    const search = input.value.trim();
    const parameters = { search, scope: everywhere.checked ? "cluster" : null };
    const [{ items, hasMore }, top] = await Promise.all([
      readList("v1/clients", "clients", parameters, limit, signal),
      read("v1/top?limit=10", { signal }),
    ]);
    // A search that started later shows its own result.
    if (update !== updates) return;
    setText(
      summary,
      search === ""
        ? `${plural(pulse.stats?.connections.active ?? items.length, "client")} on this node.`
        : `${plural(items.length, "match", "matches")}${hasMore ? " so far" : ""}.`,
    );
    more.hidden = !hasMore || limit >= 1000;
    syncRows(
      list.body,
      items,
      (client) => client.client_id,
      ({ client_id, user, subscriptions, connection }) => [
        { element: clientLink(client_id) },
        { element: user === null ? "–" : name(user), class: "long" },
        { text: connection?.peer ?? "–", class: "address" },
        figure(span(connection?.connected_ms)),
        figure(whole(subscriptions.length)),
        figure(
          connection?.behind.length ? whole(connection.behind.length) : "–",
          connection?.behind.length ? "poor" : "",
        ),
        figure(bytes(connection?.queued_bytes)),
        figure(short(connection?.received_total)),
        figure(short(connection?.sent_total)),
      ],
    );
    const perSecond = (count) => (top.window_ms > 0 ? count / (top.window_ms / 1000) : null);
    syncRows(
      busiest.body,
      top.clients,
      (client) => client.client_id,
      (client) => [
        { element: clientLink(client.client_id) },
        figure(rate(perSecond(client.messages))),
        figure(byteRate(perSecond(client.bytes))),
      ],
    );
  }

  /** Updates at once, between two regular updates. */
  async function refresh() {
    try {
      await update();
    } catch (error) {
      if (!signal.aborted) setText(summary, error.message);
    }
  }

  read("v1/nodes", { signal }).then(
    ({ nodes }) => {
      scope.hidden = nodes.length < 2;
    },
    () => {},
  );
  return poll(update, {
    interval: INTERVAL_MS,
    signal,
    onFailure: (error) => setText(summary, error.message),
  });
}

function broadcast() {
  const message = h("textarea", {
    rows: "6",
    spellcheck: "false",
    value: '{"type":"notice","data":{"text":"Maintenance at noon"}}',
  });
  return act({
    title: "Send to everyone?",
    effect: "Sends a message to every client of every node.",
    verb: "Send",
    isHarmful: true,
    method: "POST",
    path: "v1/broadcast",
    inputs: [field("Message: a JSON object with a type", message)],
    body: () => message.value,
  });
}
