// ws + ioredis, the ordinary way: PSUBSCRIBE ws:*, and ws.send(text) to each client of the room.
// node ws.js PORT REDIS_PORT
"use strict";
const http = require("node:http");
const { WebSocketServer } = require("ws");
const { Redis } = require("ioredis");

const [port, redisPort] = process.argv.slice(2).map(Number);
const rooms = new Map();

const server = http.createServer();
// Compression is off and TCP_NODELAY on, as they come.
const sockets = new WebSocketServer({ server });

sockets.on("connection", (socket, request) => {
  const id = new URL(request.url, "http://localhost").searchParams.get("sessionId");
  let room = rooms.get(id);
  if (room === undefined) rooms.set(id, (room = new Set()));
  room.add(socket);
  socket.on("error", () => socket.terminate());
  socket.on("close", () => {
    room.delete(socket);
    if (room.size === 0 && rooms.get(id) === room) rooms.delete(id);
  });
});

const redis = new Redis(redisPort, "127.0.0.1");
redis.on("pmessage", (_pattern, channel, text) => {
  const room = rooms.get(channel.slice(3));
  if (room !== undefined) for (const socket of room) socket.send(text);
});
// Listening is the sign that messages are heard.
redis.psubscribe("ws:*").then(() => server.listen(port, "127.0.0.1", 511));
