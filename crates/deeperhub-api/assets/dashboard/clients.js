// Clients: a list with a search, and the busiest ones.

import { act } from "./actions.js";
import { read } from "./api.js";
import { button, field, figure, h, name, syncRows, table } from "./dom.js";
import { byteRate, bytes, plural, rate, short, span, whole } from "./format.js";
import { poll } from "./poller.js";
import { searchList } from "./search_list.js";
import { clientLink } from "./tail.js";

/** Time between two updates. A page of clients costs the server more than its statistics. */
const INTERVAL_MS = 10_000;

export function clients({ view, signal, pulse }) {
  const search = searchList({
    label: "User, address or ID",
    placeholder: "ada, 192.0.2.7 or an ID",
    signal,
    update,
  });
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
  view.append(
    h("h1", {}, "Clients"),
    search.form,
    search.summary,
    list.element,
    search.more,
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
    const text = search.text();
    const [{ items, hasMore }, top] = await Promise.all([
      search.read("v1/clients", "clients", { search: text }),
      read("v1/top?limit=10", { signal }),
    ]);
    // A search that started later shows its own result.
    if (update !== updates) return;
    const count = items.length;
    const all = `${plural(pulse.stats?.connections.active ?? count, "client")} on this node.`;
    search.summarize(text, { count, hasMore, all });
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

  return poll(() => update(), { interval: INTERVAL_MS, signal, onFailure: search.fail });
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
