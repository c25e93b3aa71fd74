// Compiled only: programs as applications write them, and mistakes that the compiler must find.
import { Hub, HubError } from "../src/index.js";
import type { HubOptions, Message, Subscription } from "../src/index.js";

interface Chat {
  text: string;
}

export async function use(options: HubOptions): Promise<void> {
  const hub = new Hub("wss://hub.example/", {
    token: async () => "token",
    storage: window.sessionStorage,
    ...options,
  });
  hub.on("state", ({ state, until, reason }) => [state === "waiting", until?.toFixed(), reason?.length]);
  hub.on("error", ({ code, message, retryAfterMs }) => [
    code.length,
    message.length,
    retryAfterMs?.toFixed(),
  ]);
  const chat: Subscription<Chat> = hub.subscribe<Chat>("chat.42", {
    history: 50,
    presence: { info: { name: "ada" } },
  });
  const undo: () => void = chat.on("message", async ({ message, offset }) => [
    message.text,
    offset?.toFixed(),
  ]);
  chat.on("gap", ({ from, to, reason }) => [from?.toFixed(), to?.toFixed(), reason.length]);
  chat.on("state", ({ state, recovered }) => state === "live" && recovered === false);
  undo();
  try {
    await chat.ready;
  } catch (error) {
    if (error instanceof HubError) error.code.length;
  }
  for await (const message of chat) take(message);
  const { offset, subscribers } = await hub.publish("chat.42", { text: "hi" });
  const { any } = await hub.echo({ any: 1 });
  const { messages, next } = await hub.history<Chat>("chat.42", { from: -10, order: "desc" });
  const numbers: (number | undefined)[] = [offset, subscribers, any, messages.length, next];
  numbers.length;
  chat.unsubscribe();
  await hub.close();

  // @ts-expect-error: no such event
  hub.on("message_received", () => {});
  // @ts-expect-error: no such state
  hub.on("state", ({ state }) => state === "connected");
  // @ts-expect-error: the payload has no such key
  chat.on("message", ({ message }) => message.body);
  // @ts-expect-error: payloads are unknown unless the application says what they are
  hub.subscribe("chat.42").on("message", ({ message }) => message.text);
  // @ts-expect-error: no such option
  hub.subscribe("chat.42", { hsitory: 1 });
  // @ts-expect-error: internals are not part of the type
  hub._connection;
}

function take(message: Message<Chat>): string {
  return message.message.text + (message.from ?? "");
}
