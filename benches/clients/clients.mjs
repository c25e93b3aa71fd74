// One interface for all clients. Each has the package `ws` as its WebSocket.
import { createRequire } from "node:module";
import WebSocket from "ws";

const require = createRequire(import.meta.url);

/**
 * Functions that connect a client. `subscribe` of the result adds two listeners of a topic, one of
 * messages and one of states, without closures of its own: they would count as the client's memory.
 * `bodyOf` returns the body of a message, `isLive` is true for the state of a subscribed topic.
 */
export const clients = {
  async deeperhub(port, run) {
    const { Hub } = await import("../../clients/typescript/dist/deeperhub.js");
    const hub = new Hub(`ws://127.0.0.1:${port}/deeperhub/${run}`, { WebSocket, minDelay: 100 });
    hub.on("error", fail);
    await new Promise((resolve) => hub.on("state", ({ state }) => state === "open" && resolve()));
    return {
      recovers: true,
      bodyOf: ({ message }) => message,
      isLive: ({ state }) => state === "live",
      subscribe(topic, onMessage, onState) {
        const subscription = hub.subscribe(topic);
        subscription.on("message", onMessage);
        subscription.on("state", onState);
      },
    };
  },

  async centrifuge(port, run) {
    const { Centrifuge } = await import("centrifuge");
    const centrifuge = new Centrifuge(`ws://127.0.0.1:${port}/centrifuge/${run}`, {
      websocket: WebSocket,
      minReconnectDelay: 100,
    });
    centrifuge.on("disconnected", fail);
    const connected = new Promise((resolve) => centrifuge.on("connected", resolve));
    centrifuge.connect();
    await connected;
    return {
      recovers: true,
      bodyOf: ({ data }) => data,
      isLive: () => true,
      subscribe(topic, onMessage, onState) {
        const subscription = centrifuge.newSubscription(topic);
        subscription.on("publication", onMessage);
        subscription.on("subscribed", onState);
        subscription.subscribe();
      },
    };
  },

  async pusher(port, run) {
    // The build for workers uses the global WebSocket; the one for Node.js brings another.
    globalThis.self = globalThis;
    globalThis.WebSocket = WebSocket;
    globalThis.XMLHttpRequest = undefined;
    const Pusher = require("pusher-js/worker");
    const pusher = new Pusher(run, {
      cluster: "",
      wsHost: "127.0.0.1",
      wsPort: port,
      forceTLS: false,
      enabledTransports: ["ws"],
    });
    await new Promise((resolve) => pusher.connection.bind("connected", resolve));
    return {
      recovers: false,
      bodyOf: (data) => data,
      isLive: () => true,
      subscribe(topic, onMessage, onState) {
        const channel = pusher.subscribe(topic);
        channel.bind("message", onMessage);
        channel.bind("pusher:subscription_succeeded", onState);
      },
    };
  },

  /** The least that a client can do: parse, look up the topic, call the listener. */
  async bare(port, run) {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/bare/${run}`);
    const topics = new Map();
    await new Promise((resolve) => (socket.onopen = resolve));
    socket.onmessage = ({ data: text }) => {
      const { data } = JSON.parse(text);
      if (data) topics.get(data.topic).onMessage(data);
      else for (const { onState } of topics.values()) onState();
    };
    return {
      recovers: false,
      bodyOf: ({ message }) => message,
      isLive: () => true,
      subscribe(topic, onMessage, onState) {
        // The first subscription of a call sends the names of all.
        if (!topics.size) queueMicrotask(() => socket.send(JSON.stringify([...topics.keys()])));
        topics.set(topic, { onMessage, onState });
      },
    };
  },
};

function fail(cause) {
  console.error("the client reports", cause);
  process.exit(1);
}
