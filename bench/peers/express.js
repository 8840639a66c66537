// Express + ioredis, the ordinary way: read a session, decide a switch, compare and set, publish, answer.
// node express.js PORT REDIS_PORT
"use strict";
const { randomBytes } = require("node:crypto");
const express = require("express");
const { Redis } = require("ioredis");

const [port, redisPort] = process.argv.slice(2).map(Number);
const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const ATTEMPTS = 5;

const redis = new Redis(redisPort, "127.0.0.1");
redis.defineCommand("commit", {
  numberOfKeys: 1,
  lua: `
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[2])
    redis.call('PUBLISH', 'session-updates', ARGV[3])
    return 1`,
});

class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** The state after the active participant's turn ends at nowMs and the next one's begins. */
function switched(state, nowMs) {
  if (state.status !== "running") {
    const message = `Session ${state.session_id} not running (current status: ${state.status})`;
    throw new Refused(400, "INVALID_STATE_TRANSITION", message);
  }
  const elapsedMs = Math.max(0, nowMs - Date.parse(state.cycle_started_at));
  const participants = state.participants.map((each) => {
    if (!each.is_active) return each;
    const left = Math.max(0, each.time_remaining_ms - elapsedMs) + state.increment_ms;
    return {
      ...each,
      total_time_ms: left,
      time_remaining_ms: left,
      time_used_ms: each.time_used_ms + elapsedMs,
      cycle_count: each.cycle_count + 1,
      has_expired: left === 0,
      is_active: false,
    };
  });
  const from = participants.findIndex((each) => each.participant_id === state.active_participant_id);
  let next = -1;
  for (let step = 1; step <= participants.length && next < 0; step++) {
    const place = (from + step) % participants.length;
    if (!participants[place].has_expired) next = place;
  }
  if (next < 0) throw new Refused(409, "CONFLICT", "nobody has time left");
  const heir = (participants[next] = { ...participants[next], is_active: true });
  const now = new Date(nowMs).toISOString();
  return {
    ...state,
    version: state.version + 1,
    commit: randomBytes(6).toString("base64url"),
    deadline_ms: nowMs + heir.time_remaining_ms,
    participants,
    active_participant_id: heir.participant_id,
    clock: { ...state.clock, remaining_ms: heir.time_remaining_ms },
    cycle_started_at: now,
    updated_at: now,
  };
}

async function switchSession(id) {
  const key = `session:${id}`;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const stored = await redis.get(key);
    if (stored === null) throw new Refused(404, "SESSION_NOT_FOUND", `Session ${id} not found`);
    const nowMs = Date.now();
    const state = switched(JSON.parse(stored), nowMs);
    const text = JSON.stringify(state);
    const update = `{"type":"STATE_UPDATE","sessionId":"${id}","timestamp":${nowMs},"state":${text}}`;
    if ((await redis.commit(key, stored, text, update)) === 1) return state;
  }
  throw new Refused(503, "SESSION_BUSY", `Session ${id} is busy`);
}

const app = express();
app.disable("x-powered-by");
app.disable("etag");
app.use(express.json());

app.post("/v1/sessions/:id/switch", async (request, response) => {
  if (!ID.test(request.params.id)) throw new Refused(400, "VALIDATION_ERROR", "Request validation failed");
  const state = await switchSession(request.params.id.toLowerCase());
  const { session_id, active_participant_id, cycle_started_at, participants, status, version } = state;
  response.json({
    data: { session_id, active_participant_id, cycle_started_at, participants, status, version },
  });
});

app.use((error, _request, response, _next) => {
  const { status = 500, code = "INTERNAL_ERROR", message } = error;
  response.status(status).json({ error: { code, message } });
});

app.listen(port, "127.0.0.1");
