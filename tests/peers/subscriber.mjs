// A subscriber on npm's `ws`: subscriber.mjs URL TOPIC COUNT NAME
// [no-context-takeover]. Behaves like subscriber.py.

import WebSocket from "ws";

const [url, topic, count, name, takeover] = process.argv.slice(2);
const perMessageDeflate =
    takeover === "no-context-takeover" ? { clientNoContextTakeover: true, serverNoContextTakeover: true } : true;
const hub = new WebSocket(url, { perMessageDeflate });
const send = (type, data) => hub.send(JSON.stringify({ type, data }));

let extensions = "none";
hub.on("upgrade", (answer) => {
    extensions = answer.headers["sec-websocket-extensions"] ?? "none";
});
hub.on("open", () => send("subscribe", { topic }));
hub.on("error", (error) => {
    console.error(error);
    process.exit(1);
});
let deliveries = 0;
hub.on("message", (bytes) => {
    const text = bytes.toString();
    const { type } = JSON.parse(text);
    if (type === "subscribed") {
        console.log(`subscribed ${extensions}`);
    }
    if (type !== "message") {
        return;
    }
    console.log(text);
    deliveries += 1;
    if (deliveries === 1) {
        for (const turn of [1, 2]) {
            send("publish", { topic, message: { from: name, turn, rows: `${name} says it again; é `.repeat(200) } });
        }
    }
    if (deliveries === Number(count)) {
        hub.close();
    }
});
