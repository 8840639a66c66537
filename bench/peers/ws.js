// ws + ioredis, the ordinary way: PSUBSCRIBE ws:*, and ws.send(text) to each client of the room.
// With a ping interval, in seconds, who has not answered the last ping is cut off, as ws's own page has it.
// node ws.js PORT REDIS_PORT [PING_INTERVAL]
"use strict";
const http = require("node:http");
const { WebSocketServer } = require("ws");
const { Redis } = require("ioredis");

const [port, redisPort, pingInterval = 0] = process.argv.slice(2).map(Number);
const rooms = new Map();

const server = http.createServer();
// Compression is off and TCP_NODELAY on, as they come.
const sockets = new WebSocketServer({ server });

sockets.on("connection", (socket, request) => {
  socket.isAlive = true;
  socket.on("pong", () => (socket.isAlive = true));
  const id = new URL(request.url, "http://localhost").searchParams.get("sessionId");
  if (id === null) return;
  let room = rooms.get(id);
  if (room === undefined) rooms.set(id, (room = new Set()));
  room.add(socket);
  socket.on("error", () => socket.terminate());
  socket.on("close", () => {
    room.delete(socket);
    if (room.size === 0 && rooms.get(id) === room) rooms.delete(id);
  });
  // Every room is heard already.
  socket.send('{"type":"CONNECTED"}');
});

if (pingInterval > 0) {
  setInterval(() => {
    for (const socket of sockets.clients) {
      if (!socket.isAlive) {
        socket.terminate();
        continue;
      }
      socket.isAlive = false;
      socket.ping();
    }
  }, pingInterval * 1000);
}

const redis = new Redis(redisPort, "127.0.0.1");
redis.on("pmessage", (_pattern, channel, text) => {
  const room = rooms.get(channel.slice(3));
  if (room !== undefined) for (const socket of room) socket.send(text);
});
// Listening is the sign that messages are heard.
redis.psubscribe("ws:*").then(() => server.listen(port, "127.0.0.1", 511));
