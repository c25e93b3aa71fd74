// One client: its connection, subscriptions with their positions, and actions.

import { act } from "./actions.js";
import { path, read } from "./api.js";
import { button, field, figure, h, name, setText, syncRows, table } from "./dom.js";
import { bytes, plural, rate, span, whole } from "./format.js";
import { poll } from "./poller.js";
import { facts } from "./topic.js";
import { topicLink } from "./topics.js";

export function client({ view, signal, id }) {
  const list = facts([
    "User",
    "Address",
    "Origin",
    "Connected for",
    "Messages in",
    "Messages out",
    "Received",
    "Sent",
    "Queued",
    "Subscriptions",
  ]);
  const status = h("p", { role: "status" });
  const subscriptions = table("Subscriptions", [
    "Topic or pattern",
    { label: "Position", class: "figure" },
    { label: "Newest", class: "figure" },
    { label: "Behind", class: "figure" },
    "Action",
  ]);
  const disconnectUser = button("Disconnect the user", () => disconnectAll(user), "harmful");
  disconnectUser.hidden = true;
  const actions = h(
    "div",
    { class: "buttons" },
    button("Send", () => send(id)),
    button("Disconnect", () => disconnect(id), "harmful"),
    disconnectUser,
  );
  view.append(
    h("p", {}, h("a", { href: "#/clients" }, "Clients")),
    h("h1", { class: "long" }, name(id)),
    status,
    list.element,
    actions,
    h("h2", {}, "Subscriptions"),
    subscriptions.element,
  );
  let user = null;
  let before = null;

  function showSubscriptions(found) {
    const positions = new Map((found.positions ?? []).map((position) => [position.topic, position]));
    syncRows(
      subscriptions.body,
      found.subscriptions,
      (topic) => topic,
      (topic) => {
        const position = positions.get(topic);
        const behind = position ? position.newest - position.offset : null;
        return [
          { element: topicLink(topic), class: "long" },
          figure(whole(position?.offset)),
          figure(whole(position?.newest)),
          figure(whole(behind), behind > 0 ? "poor" : ""),
          { element: button("Unsubscribe", () => unsubscribe(id, topic), "quiet harmful") },
        ];
      },
    );
  }

  return poll(
    async () => {
      const found = await read(path`v1/clients/${id}`, { signal });
      const { connection } = found;
      const now = Date.now();
      const perSecond = (key) =>
        before && connection ? (connection[key] - before.connection[key]) / ((now - before.at) / 1000) : null;
      user = found.user;
      disconnectUser.hidden = user === null;
      setText(status, "");
      list.show([
        found.user === null ? "none" : found.user,
        connection?.peer ?? "–",
        connection?.origin ?? "none",
        span(connection?.connected_ms),
        rate(perSecond("received_total")),
        rate(perSecond("sent_total")),
        whole(connection?.received_total),
        whole(connection?.sent_total),
        bytes(connection?.queued_bytes),
        whole(found.subscriptions.length),
      ]);
      before = connection ? { connection, at: now } : null;
      showSubscriptions(found);
    },
    {
      signal,
      onFailure: (error) => {
        const isGone = error.status === 404;
        setText(status, isGone ? "This client is not connected any more." : error.message);
        status.className = "bad";
      },
    },
  );
}

function send(id) {
  const message = h("textarea", {
    rows: "6",
    spellcheck: "false",
    value: '{"type":"notice","data":{"text":"Hello"}}',
  });
  return act({
    title: "Send",
    effect: h("span", {}, "Sends a message to ", name(id), "."),
    verb: "Send",
    method: "POST",
    path: path`v1/clients/${id}/messages`,
    inputs: [field("Message: a JSON object with a type", message)],
    body: () => message.value,
  });
}

function unsubscribe(id, topic) {
  return act({
    title: "End the subscription?",
    verb: "End it",
    isHarmful: true,
    method: "DELETE",
    path: path`v1/clients/${id}/subscriptions/${topic}`,
    effect: h(
      "span",
      {},
      "Ends the subscription of ",
      name(id),
      " to ",
      name(topic),
      ". The client is told, and may subscribe again.",
    ),
  });
}

function disconnect(id) {
  return act({
    title: "Disconnect the client?",
    verb: "Disconnect",
    isHarmful: true,
    method: "DELETE",
    path: path`v1/clients/${id}`,
    effect: h(
      "span",
      {},
      "Closes the connection of ",
      name(id),
      " with 4003. A client that keeps to the code does not come back. ",
      "Revoke its token to keep it away.",
    ),
  });
}

async function disconnectAll(user) {
  const { clients } = await read(`v1/clients?limit=1000&search=${encodeURIComponent(user)}`);
  const count = clients.filter((other) => other.user === user).length;
  return act({
    title: "Disconnect the user?",
    verb: "Disconnect",
    isHarmful: true,
    method: "DELETE",
    path: path`v1/users/${user}`,
    effect: h(
      "span",
      {},
      `Closes ${plural(count, "connection")} of `,
      name(user),
      " here, and those on other nodes, with 4003.",
    ),
  });
}
