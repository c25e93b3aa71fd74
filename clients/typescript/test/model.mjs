// A hub in memory for random tests: topics with history, `once`, and faults on the way to the client.

export class ModelHub {
  topics = new Map();
  connections = 0;
  /** The open connection: its socket, subscriptions, and what is on the way to it. */
  connection = null;

  constructor(random, names) {
    this.random = random;
    for (const name of names) this.topics.set(name, { name, epochs: [], onces: new Map() });
    this.restart();
  }

  /** Starts counting anew in all topics, as a process that was restarted. */
  restart() {
    for (const topic of this.topics.values()) {
      topic.epochs.push({ epoch: `e${topic.epochs.length + 1}`, messages: [], trimmed: 0 });
      topic.onces.clear();
    }
  }

  accept(socket) {
    this.connections += 1;
    this.connection = {
      id: `n1.0-1-${this.connections}`,
      socket,
      subscriptions: new Set(),
      outgoing: [],
      processed: 0,
    };
  }

  log(name) {
    return this.topics.get(name).epochs.at(-1);
  }

  position(name, offset = this.log(name).messages.length) {
    return { epoch: this.log(name).epoch, offset, time: offset };
  }

  /** Returns the position of the message: the first one, if it was published before. */
  publish(name, message, from, once, excludeSelf) {
    const topic = this.topics.get(name);
    const known = once && topic.onces.get(once);
    if (known) return known;
    const log = this.log(name);
    const offset = log.messages.push({ message, from, once, excluded: excludeSelf ? from : undefined });
    const position = this.position(name, offset);
    if (once) topic.onces.set(once, position);
    if (this.connection?.subscriptions.has(name) && !(excludeSelf && from === this.connection.id))
      this.deliver(name, offset);
    return position;
  }

  deliver(name, offset) {
    const { message, from } = this.log(name).messages[offset - 1];
    this.connection.outgoing.push({
      type: "message",
      data: { topic: name, message, from, ...this.position(name, offset) },
    });
  }

  /** Drops the oldest messages of a topic. */
  trim(name) {
    const log = this.log(name);
    log.trimmed = Math.max(log.trimmed, log.messages.length - 3);
  }

  /** Empties a topic's history: a new epoch, whose offsets go on. */
  clear(name) {
    const topic = this.topics.get(name);
    const { messages } = this.log(name);
    topic.epochs.push({
      epoch: `e${topic.epochs.length + 1}`,
      messages: messages.map((message) => ({ ...message, once: undefined })),
      trimmed: messages.length,
    });
    if (this.connection?.subscriptions.has(name))
      this.connection.outgoing.push({
        type: "gap",
        data: { topic: name, ...this.position(name), reason: "epoch" },
      });
  }

  /** Answers the next messages of the client. */
  process(count) {
    const { connection } = this;
    for (const message of connection.socket.sent.slice(connection.processed, connection.processed + count)) {
      connection.processed += 1;
      this.answer(message);
    }
  }

  answer({ type, id, data }) {
    const reply = (kind, body) => this.connection.outgoing.push({ type: kind, id, data: body });
    if (type === "ping") reply("pong");
    if (type === "publish") {
      if (this.random() < 0.05)
        return reply("error", { code: "unavailable", message: "later", retry_after_ms: 50 });
      const { id } = this.connection;
      const position = this.publish(data.topic, data.message, id, data.once, data.exclude_self);
      reply("published", { topic: data.topic, subscribers: 1, ...position });
    }
    if (type === "unsubscribe") {
      this.connection.subscriptions.delete(data.topic);
      reply("unsubscribed", { topic: data.topic });
    }
    if (type === "history") {
      const messages = this.log(data.topic)
        .messages.map((_, index) => index + 1)
        .slice(data.from);
      const kept = messages.filter((offset) => offset > this.log(data.topic).trimmed);
      const bodies = kept.map((offset) => ({
        topic: data.topic,
        ...this.log(data.topic).messages[offset - 1],
        ...this.position(data.topic, offset),
      }));
      reply("history", { topic: data.topic, ...this.position(data.topic), messages: bodies });
    }
    if (type === "subscribe") {
      const replays = [];
      const entries = (data.topics ?? [data]).map((entry) => this.subscribe(entry, replays));
      reply("subscribed", data.topics ? { topics: entries } : entries[0]);
      for (const [topic, offset] of replays) this.deliver(topic, offset);
    }
  }

  subscribe({ topic, recover }, replays) {
    if (this.random() < 0.05)
      return { topic, error: { code: "unavailable", message: "later", retry_after_ms: 50 } };
    this.connection.subscriptions.add(topic);
    const { epoch, messages, trimmed } = this.log(topic);
    if (!recover) return { topic, ...this.position(topic) };
    const reason =
      recover.epoch !== epoch
        ? "epoch"
        : recover.offset > messages.length
          ? "ahead"
          : recover.offset < trimmed
            ? "trimmed"
            : null;
    if (reason) return { topic, ...this.position(topic), recovered: false, reason };
    for (let offset = recover.offset + 1; offset <= messages.length; offset += 1)
      replays.push([topic, offset]);
    return { topic, ...recover, recovered: true, replay: messages.length - recover.offset };
  }

  /** Sends what is on the way: the next `count` messages, of which a fault may lose or repeat deliveries. */
  send(count, faults) {
    for (const message of this.connection.outgoing.splice(0, count)) {
      const fault = message.type === "message" && faults ? this.random() : 1;
      if (fault < 0.02) continue;
      this.connection.socket.receive(message.type, message.data, message.id);
      if (fault < 0.06) this.connection?.socket.receive(message.type, message.data, message.id);
    }
  }
}
