// Socket.IO with its Redis adapter, WebSocket only: the adapter relays what a redis-emitter publishes.
// node socketio.js PORT REDIS_PORT
"use strict";
const http = require("node:http");
const { Server } = require("socket.io");
const { createAdapter } = require("@socket.io/redis-adapter");
const { Redis } = require("ioredis");

const [port, redisPort] = process.argv.slice(2).map(Number);
const publisher = new Redis(redisPort, "127.0.0.1");
const subscriber = publisher.duplicate();

const server = http.createServer();
const io = new Server(server, {
  transports: ["websocket"],
  serveClient: false,
  adapter: createAdapter(publisher, subscriber),
});

io.on("connection", async (socket) => {
  await socket.join(socket.handshake.query.sessionId);
  socket.emit("joined");
});

// The adapter subscribes at its start, on the same connection: when this is answered, so is that.
subscriber.once("ready", () => subscriber.subscribe("ready").then(() => server.listen(port, "127.0.0.1", 511)));
