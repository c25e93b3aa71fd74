// A hub as one would write it first on npm `ws`. It speaks as much of the protocol as the comparison needs:
// `node ws.js PORT`. Not a server for use: it checks nobody and limits nothing.
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
