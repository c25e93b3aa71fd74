// Runs one scenario with one client in a process of its own, and tells its parent the result. Fails
// if a message is missing, comes twice or out of order:
//
//     scenario.mjs SCENARIO CLIENT PORT RUN PER_FRAME
import { clients } from "./clients.mjs";

const [scenario, name, port, run, perFrame] = process.argv.slice(2);
const connect = (suffix = "") => clients[name](Number(port), run + suffix);

const answers = new Map();
process.on("message", ({ id, at }) => answers.get(id)?.(at));

/** Sends a command to the server, by way of the parent. */
function command(command, options = {}) {
  process.send({ command, run, ...options });
}

/** Subscribes to topics, counts their messages, and checks the order. */
class Audience {
  received = 0;
  live = 0;
  /** Messages of each topic that the client may miss. */
  mayMiss = 0;
  #waits = [];

  constructor(client, prefix, topics) {
    const { bodyOf, isLive } = client;
    for (let topic = 0; topic < topics; topic++) {
      let last = 0;
      const onMessage = (event) => {
        const { n } = bodyOf(event);
        if (n !== last + 1 && n !== last + 1 + this.mayMiss) {
          throw new Error(`message ${n} of topic ${topic} came after message ${last}`);
        }
        last = n;
        this.received++;
        this.#check();
      };
      const onState = (event) => {
        if (!isLive(event)) return;
        this.live++;
        this.#check();
      };
      client.subscribe(`${prefix}.${topic}`, onMessage, onState);
    }
  }

  /** Resolves when so many messages and answers to subscribes have come in total. */
  until(received, live) {
    return new Promise((resolve) => {
      this.#waits.push({ received, live, resolve });
      this.#check();
    });
  }

  #check() {
    const wait = this.#waits[0];
    if (!wait || this.received < wait.received || this.live < wait.live) return;
    this.#waits.shift();
    if (this.received > wait.received || this.live > wait.live) {
      throw new Error(`${this.received} messages instead of ${wait.received}`);
    }
    wait.resolve();
  }
}

const scenarios = {
  /** CPU time of this process per message, in µs. */
  async cpu() {
    const [topics, warmUp, count] = [100, 50_000, 200_000];
    const audience = new Audience(await connect(), "bench.topic", topics);
    await audience.until(0, topics);
    command("publish", { count: warmUp, perFrame: Number(perFrame) });
    await audience.until(warmUp, topics);
    const before = process.cpuUsage();
    command("publish", { count, perFrame: Number(perFrame) });
    await audience.until(warmUp + count, topics);
    const { user, system } = process.cpuUsage(before);
    return [(user + system) / count];
  },

  /** Bytes of heap per subscription that has received a message. */
  async heap() {
    const [few, many] = [20, 1_000];
    const client = await connect();
    // Code that runs for the first time takes heap too.
    const first = new Audience(client, "bench.first", few);
    await first.until(0, few);
    command("publish", { count: few });
    await first.until(few, few);
    const before = await heapUsed();
    const audience = new Audience(client, "bench.topic", many);
    await audience.until(0, many);
    command("publish", { count: few + many });
    await Promise.all([first.until(2 * few, few), audience.until(many, many)]);
    return [((await heapUsed()) - before) / many];
  },

  /**
   * Times from a cut until all topics of a client are live and have the messages that they missed,
   * in ms: of each connection's first cut and second cut.
   */
  async cut() {
    const [connections, topics, missed] = [12, 100, 3];
    const all = [];
    for (let index = 0; index < connections; index++) {
      const client = await connect(`-${index}`);
      const audience = new Audience(client, "bench.topic", topics);
      await audience.until(0, topics);
      // A message of each topic gives the client a position.
      command("publish", { run: `${run}-${index}`, count: topics });
      await audience.until(topics, topics);
      all.push({ client, audience, index });
    }
    const cutEach = (offset) =>
      Promise.all(
        all.map(async ({ client, audience, index }) => {
          // Connections do not come back at the same moment.
          await new Promise((resolve) => setTimeout(resolve, 30 * index));
          audience.mayMiss = client.recovers ? 0 : missed;
          const recovered = client.recovers ? topics * missed : 0;
          const received = audience.received + recovered;
          const live = audience.live + topics;
          const id = offset + index;
          const answer = new Promise((resolve) => answers.set(id, resolve));
          const isBack = audience.until(received, live).then(() => process.hrtime.bigint());
          command("cut", { run: `${run}-${index}`, missed, id });
          const ms = Number((await isBack) - BigInt(await answer)) / 1e6;
          // Live means that messages come.
          command("publish", { run: `${run}-${index}`, count: topics });
          await audience.until(received + topics, live);
          return ms;
        }),
      );
    const first = await cutEach(0);
    const second = await cutEach(connections);
    return [first, second];
  },
};

async function heapUsed() {
  for (let pass = 0; pass < 4; pass++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    globalThis.gc();
  }
  return process.memoryUsage().heapUsed;
}

const result = await scenarios[scenario]();
process.send({ result }, () => process.exit());
