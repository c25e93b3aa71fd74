// A straightforward hub on npm `ws`: `node ws.js PORT`. It implements the part of the protocol that the comparison
// needs. Not for production: it has no authentication and no limits.
const { WebSocketServer } = require("ws");

const topics = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]), perMessageDeflate: false });

server.on("connection", (socket) => {
  const own = new Set();
  socket.send('{"type":"welcome","data":{}}');
  socket.on("message", (bytes) => {
    const { type, data } = JSON.parse(bytes);
    if (type === "echo") {
      socket.send(JSON.stringify({ type, data }));
    } else if (type === "subscribe") {
      if (!topics.has(data.topic)) topics.set(data.topic, new Set());
      topics.get(data.topic).add(socket);
      own.add(data.topic);
      socket.send(JSON.stringify({ type: "subscribed", data: { topic: data.topic } }));
    } else if (type === "publish") {
      const delivery = JSON.stringify({ type: "message", data });
      for (const subscriber of topics.get(data.topic) ?? []) subscriber.send(delivery);
    }
  });
  socket.on("error", () => socket.terminate());
  socket.on("close", () => {
    for (const topic of own) topics.get(topic)?.delete(socket);
  });
});
