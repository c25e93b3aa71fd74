// A scripted server that speaks as much of three protocols as a benchmark of clients needs. It has
// a process of its own and takes commands from its parent. Not a service: it has no limits, and
// one connection for each run.
//
// The path selects protocol and run: `/deeperhub/RUN`, `/centrifuge/RUN`, `/app/RUN` for Pusher,
// and `/bare/RUN`.
import { WebSocketServer } from "ws";

/** Messages that a topic keeps for recovery. */
const KEPT = 10;
/** Bytes that wait in a socket before the server pauses. */
const MAX_BUFFERED = 256 * 1024;
const EPOCH = "k3J9aQx2";
/** Messages that a client gets with one write, so that all clients read as much at once. */
const TOGETHER = 64;
/** The text of a message. Its body is about 128 bytes long. */
const TEXT = "x".repeat(108);

const runs = new Map();

class Run {
  topics = new Map();
  socket = undefined;
  tcp = undefined;

  topic(name) {
    let topic = this.topics.get(name);
    if (!topic) this.topics.set(name, (topic = { name, offset: 0, time: Date.now(), kept: [] }));
    return topic;
  }
}

/** Appends the next message to a topic. Each body has the message's number in the topic. */
function append(topic) {
  const offset = ++topic.offset;
  topic.time = Date.now();
  const message = { offset, time: topic.time, body: { n: offset, text: TEXT } };
  topic.kept.push(message);
  if (topic.kept.length > KEPT) topic.kept.shift();
  return message;
}

/** Returns the messages after an offset, or `undefined` if some are not kept any more. */
function after(topic, offset) {
  const missed = topic.kept.filter((message) => message.offset > offset);
  return missed.length === topic.offset - offset ? missed : undefined;
}

const deeperhub = {
  opened: () => [
    JSON.stringify({
      type: "welcome",
      data: {
        client_id: "n1.0-1-1",
        server: "script",
        version: "1",
        features: ["history"],
        server_time: Date.now(),
        limits: {
          max_message_bytes: 65536,
          max_delivery_bytes: 66560,
          max_subscriptions: 10000,
          ping_interval_ms: 25000,
        },
      },
    }),
  ],
  delivery: (topic, { body: message, time, offset }) =>
    JSON.stringify({ type: "message", data: { topic: topic.name, message, time, epoch: EPOCH, offset } }),
  received(run, text) {
    const { type, id, data } = JSON.parse(text);
    if (type === "ping") return [JSON.stringify({ type: "pong" })];
    if (type !== "subscribe") return [];
    const replays = [];
    const topics = (data.topics ?? [data]).map(({ topic: name, recover }) => {
      const topic = run.topic(name);
      const { time, offset } = topic;
      const missed = recover?.epoch === EPOCH ? after(topic, recover.offset) : undefined;
      if (!recover) return { topic: name, time, epoch: EPOCH, offset };
      if (!missed) {
        return { topic: name, time, epoch: EPOCH, offset, recovered: false, reason: "trimmed" };
      }
      for (const message of missed) replays.push(this.delivery(topic, message));
      const replay = missed.length;
      return { topic: name, time, epoch: EPOCH, offset: recover.offset, recovered: true, replay };
    });
    const reply = { type: "subscribed", id, data: data.topics ? { topics } : topics[0] };
    return [JSON.stringify(reply), ...replays];
  },
};

const centrifuge = {
  opened: () => [],
  delivery: (topic, { body: data, offset }) =>
    JSON.stringify({ push: { channel: topic.name, pub: { data, offset } } }),
  received(run, text) {
    const replies = [];
    for (const line of text.split("\n")) {
      const { id, connect, subscribe } = line ? JSON.parse(line) : {};
      if (connect) {
        replies.push({ id, connect: { client: "n1-1", version: "script", ping: 25, pong: true } });
      } else if (subscribe) {
        const topic = run.topic(subscribe.channel);
        const reply = { recoverable: true, positioned: true, epoch: EPOCH, offset: topic.offset };
        if (subscribe.recover) {
          const missed = subscribe.epoch === EPOCH ? after(topic, subscribe.offset ?? 0) : undefined;
          reply.was_recovering = true;
          if (missed) {
            reply.recovered = true;
            reply.offset = subscribe.offset ?? 0;
            reply.publications = missed.map(({ body: data, offset }) => ({ data, offset }));
          }
        }
        replies.push({ id, subscribe: reply });
      }
    }
    // Replies to commands of one frame share a frame too.
    return replies.length ? [replies.map((reply) => JSON.stringify(reply)).join("\n")] : [];
  },
};

/** Pusher's protocol, version 7. Its `data` is JSON in a string. */
const pusher = {
  opened: () => [
    JSON.stringify({
      event: "pusher:connection_established",
      data: JSON.stringify({ socket_id: "1.1", activity_timeout: 120 }),
    }),
  ],
  delivery: (topic, { body }) =>
    JSON.stringify({ event: "message", channel: topic.name, data: JSON.stringify(body) }),
  received(run, text) {
    const { event, data } = JSON.parse(text);
    if (event === "pusher:ping") return [JSON.stringify({ event: "pusher:pong", data: "{}" })];
    if (event !== "pusher:subscribe") return [];
    run.topic(data.channel);
    return [
      JSON.stringify({ event: "pusher_internal:subscription_succeeded", channel: data.channel, data: "{}" }),
    ];
  },
};

/** Deliveries of deeperhub for a WebSocket without a client. It sends the names of its topics. */
const bare = {
  opened: () => [],
  delivery: deeperhub.delivery,
  received(run, text) {
    for (const name of JSON.parse(text)) run.topic(name);
    return ["{}"];
  },
};

const protocols = { deeperhub, centrifuge, app: pusher, bare };

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });
server.on("connection", (socket, request) => {
  const [, protocol, name] = request.url.split(/[/?]/);
  const script = protocols[protocol];
  if (!script) return socket.terminate();
  let run = runs.get(name);
  if (!run) runs.set(name, (run = new Run()));
  run.socket = socket;
  run.tcp = request.socket;
  run.script = script;
  for (const text of script.opened()) socket.send(text);
  socket.on("message", (bytes) => {
    for (const text of script.received(run, bytes.toString())) socket.send(text);
  });
  socket.on("error", () => socket.terminate());
});
server.on("listening", () => process.send({ port: server.address().port }));

/** Publishes to all topics of a run in turn, `perFrame` messages to a frame. */
function publish({ run: name, count, perFrame = 1 }) {
  const run = runs.get(name);
  const topics = [...run.topics.values()];
  const tcp = run.tcp;
  let sent = 0;
  const more = () => {
    if (run.socket.readyState !== 1) return;
    while (sent < count && run.socket.bufferedAmount < MAX_BUFFERED) {
      const end = Math.min(sent + TOGETHER, count);
      tcp.cork();
      while (sent < end) {
        const texts = [];
        while (texts.length < perFrame && sent < end) {
          const topic = topics[sent++ % topics.length];
          texts.push(run.script.delivery(topic, append(topic)));
        }
        run.socket.send(texts.join("\n"));
      }
      tcp.uncork();
    }
    if (sent < count) setTimeout(more, 1);
  };
  more();
}

const commands = {
  publish,
  /** Cuts a connection without a close frame, and publishes meanwhile. */
  cut({ run: name, missed, id }) {
    const run = runs.get(name);
    const at = process.hrtime.bigint().toString();
    run.socket.terminate();
    for (const topic of run.topics.values()) for (let n = 0; n < missed; n++) append(topic);
    process.send({ id, at });
  },
  end: ({ run }) => runs.delete(run),
};

process.on("message", (command) => commands[command.command](command));
process.on("disconnect", () => process.exit());
