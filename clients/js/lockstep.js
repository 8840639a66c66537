/**
 * Lockstep for browsers and other programs that have `WebSocket`, `EventTarget` and `performance`.
 *
 * One file without dependencies: copy it. It has three parts, each of use without the others:
 *
 * - the clocks: pure functions from a session's state and an instant to what its clocks show;
 * - `ServerTime`: what time it is at the server, whatever the local wall clock says;
 * - `Lockstep`: a connection that comes back by itself and always ends up with the latest state.
 *
 *     const link = new Lockstep("wss://example.org/ws", sessionId);
 *     link.addEventListener("state", ({ detail }) => console.log(detail.state.status));
 *     link.connect();
 *     sessionClock(link.state, link.time.now());   // as often as you like: nothing is counted, all is calculated
 *
 * @module lockstep
 */

/* ---- The clocks: a state holds what remained at `cycle_started_at`; everything else is arithmetic ---- */

/**
 * For how long the running clock has been running since `cycle_started_at`: 0 unless the session is running.
 *
 * @param {object} state a session's state, as REST and WebSocket carry it
 * @param {number} nowMs server time, epoch ms; here and below
 * @returns {number} ms, never negative: an instant before the beginning gives no time back
 */
export function ranMs(state, nowMs) {
  if (state.status !== "running") return 0;
  return Math.max(0, nowMs - Date.parse(state.cycle_started_at));
}

/**
 * The clock that runs, or stands still while pending or paused.
 *
 * @returns {{kind: string, ms: number} | null} `ms` remains, or in kind "elapsed" has passed; null when the
 *   session is over. A clock that has run out stays at its end until the server says what that means.
 */
export function sessionClock(state, nowMs) {
  if (!state.clock) return null;
  const { kind, remaining_ms, elapsed_ms } = state.clock;
  const ran = ranMs(state, nowMs);
  if (kind === "elapsed") return { kind, ms: Math.min(elapsed_ms + ran, state.max_time_ms ?? Infinity) };
  return { kind, ms: Math.max(0, remaining_ms - ran) };
}

/**
 * What one participant has left: of the own bank in per_participant, of the group's in per_group; of the one
 * clock in global (everybody's) and per_cycle (only of whoever's turn it is).
 *
 * @param {object} participant one of `state.participants`
 * @returns {number | null} ms, or null where the participant has no clock to show
 */
export function remainingMs(state, participant, nowMs) {
  const bank = (spends) => Math.max(0, participant.time_remaining_ms - (spends ? ranMs(state, nowMs) : 0));
  switch (state.sync_mode) {
    case "per_participant":
      return bank(participant.is_active);
    case "per_group":
      return bank(participant.group_id === activeParticipant(state)?.group_id);
    case "per_cycle":
      return participant.is_active ? (sessionClock(state, nowMs)?.ms ?? null) : null;
    case "global":
      return sessionClock(state, nowMs)?.ms ?? null;
    default:
      return null;
  }
}

/**
 * How much time a participant's turns have taken so far, the one that is going on included.
 *
 * @returns {number} ms
 */
export function usedMs(state, participant, nowMs) {
  return participant.time_used_ms + (participant.is_active ? ranMs(state, nowMs) : 0);
}

/**
 * The lap that is being run, in count_up.
 *
 * @returns {{number: number, ms: number} | null} counted from 1; null in the other modes and when it is over
 */
export function currentLap(state, nowMs) {
  if (state.sync_mode !== "count_up" || !state.clock) return null;
  const sinceStart = sessionClock(state, nowMs).ms - state.clock.elapsed_ms;
  return { number: state.lap_count + 1, ms: state.lap_elapsed_ms + sinceStart };
}

/** @returns {object | undefined} the participant whose turn it is */
export function activeParticipant(state) {
  return state.participants.find((participant) => participant.participant_id === state.active_participant_id);
}

/**
 * A clock's face: "4:59", "1:00:00", with decimals "0:09.3".
 *
 * @param {number} ms
 * @param {{decimals?: number, up?: boolean}} [options] what counts down is rounded up, so that it shows zero
 *   only when nothing is left; what counts up is rounded down
 */
export function formatClock(ms, { decimals = 0, up = false } = {}) {
  const unit = 10 ** (3 - decimals);
  const units = up ? Math.floor(ms / unit) : Math.ceil(ms / unit);
  const seconds = Math.floor((units * unit) / 1000);
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(seconds / 60);
  const face = minutes < 60 ? `${minutes}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}`;
  const fraction = decimals ? "." + String(units % 10 ** decimals).padStart(decimals, "0") : "";
  return `${face}:${two(seconds % 60)}${fraction}`;
}

/**
 * Whether one state of a session is later than another. Within an epoch versions rise; an id that was deleted
 * and created again begins at version 1 of a greater epoch. What carries no version is taken as it comes.
 */
export function isNewer(state, than) {
  if (than?.version === undefined || state.version === undefined) return true;
  return state.epoch === than.epoch ? state.version > than.version : state.epoch > than.epoch;
}

/* ---- Server time ---- */

const SAMPLES_KEPT = 8;

/**
 * What time it is at the server, measured by questions and answers.
 *
 * Its basis is `performance.now()`: setting the local wall clock changes nothing. The answer with the shortest
 * round trip counts, for it can be wrong by half of that at most. Old answers that a new one contradicts are
 * forgotten: the server's clock was set, or this machine slept and its monotonic clock stood still.
 */
export class ServerTime {
  #samples = [];
  #offsetMs;

  /** @param {() => number} [localMs] a monotonic clock */
  constructor(localMs = () => performance.now()) {
    this.localMs = localMs;
    this.#offsetMs = Date.now() - localMs(); // the best guess until the server has said something
  }

  /** Server time in epoch ms, not rounded. */
  now() {
    return this.localMs() + this.#offsetMs;
  }

  /** The most by which `now()` can be wrong, in ms; Infinity as long as nothing was measured. */
  get errorMs() {
    return this.#samples.length ? Math.min(...this.#samples.map((sample) => sample.roundTripMs)) / 2 : Infinity;
  }

  /**
   * Learn from one answer. A timestamp is floored to the ms, so server time was half a ms later on average.
   *
   * @param {number} sentMs local time at which the question left
   * @param {number} receivedMs local time at which the answer came
   * @param {number} timestampMs server time in the answer
   */
  learn(sentMs, receivedMs, timestampMs) {
    const sample = {
      roundTripMs: receivedMs - sentMs,
      leastMs: timestampMs - receivedMs,
      mostMs: timestampMs + 1 - sentMs,
    };
    const agrees = (old) => old.leastMs <= sample.mostMs && sample.leastMs <= old.mostMs;
    const kept = this.#samples.every(agrees) ? this.#samples.slice(1 - SAMPLES_KEPT) : [];
    this.#samples = [...kept, sample];
    const best = this.#samples.reduce((a, b) => (b.roundTripMs < a.roundTripMs ? b : a));
    this.#offsetMs = (best.leastMs + best.mostMs) / 2;
  }

  /** Measure anew, as after a reconnect: perhaps to another process. What is known holds until the first answer. */
  forget() {
    this.#samples = [];
  }
}

/* ---- The connection ---- */

/**
 * How long to wait before attempt number `attempt` (from 0) to come back: anything up to a limit that doubles,
 * so that the clients of a server that was restarted don't all return in the same moment ("full jitter").
 */
export function backoffMs(attempt, random = Math.random) {
  return random() * Math.min(15_000, 500 * 2 ** attempt);
}

/**
 * What a close code asks for.
 *
 * @returns {"retry" | "gone" | "refused"} come back; the session was deleted; don't come back like this
 */
export function afterClose(code) {
  if (code === 1000) return "gone";
  return code === 1008 || (code >= 4500 && code <= 4999) ? "refused" : "retry";
}

const CONNECT_WITHIN_MS = 10_000;
const PING_EVERY_MS = 5_000;
const PONG_WITHIN_MS = 4_000;
const BURST = 5; // PINGs in quick succession after each connect: one of them will meet no queue
const BURST_PAUSE_MS = 60;
const STEADY_AFTER_MS = 10_000; // a connection that lasted this long starts the backoff anew

/**
 * One session, followed over a WebSocket for as long as it exists.
 *
 * It connects, asks for the present state, measures the server's time, notices when the line is dead though
 * nothing has said so, and comes back. It never invents a state: `state` is always one that the server sent.
 *
 * Events, each a CustomEvent with these fields in `detail`:
 *
 * - `state` {state, timestamp, sync}: a newer state, or with `sync` the one to show instead of whatever was shown
 * - `missing` {}: connected, but there is no such session; should it be created, `state` follows
 * - `deleted` {}: the session was deleted
 * - `status` {status, retryMs?, code?, reason?}: see `status`
 * - `error` {code, message}: the server did not understand or could not do something
 * - `message` {...}: whatever else is published to the session's clients
 */
export class Lockstep extends EventTarget {
  /** @type {object | null} the latest state */
  state = null;
  /**
   * "connecting" at first, "online", "offline" (and coming back); for good: "gone" (the session was deleted),
   * "refused" (the server wants no more of this), "closed" (by `close()`).
   */
  status = "connecting";
  time = new ServerTime();

  #url;
  #token;
  #socket = null;
  #attempt = 0;
  #onlineSinceMs = 0;
  #retryTimer;
  #pingTimer;
  #patienceTimer; // runs while an answer is due: to the connect, or to a PING
  #ping = { id: 0, sentMs: 0, isDue: false };
  #burst = 0;
  #listening = null;

  /**
   * @param {string | URL} url the server's `/ws`, as ws:, wss:, http: or https:
   * @param {string} sessionId
   * @param {{ token?: string | (() => string) }} [options] where the server wants tokens; a function is asked anew
   *   before each connect
   */
  constructor(url, sessionId, { token } = {}) {
    super();
    this.#token = token;
    this.#url = new URL(url);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#url.searchParams.set("sessionId", sessionId);
  }

  /** Connect, and stay connected until `close()` or until the server ends it for good. */
  connect() {
    if (this.#socket) return;
    clearTimeout(this.#retryTimer);
    this.#listenToTheMachine();
    const socket = (this.#socket = new WebSocket(this.#url, this.#protocols()));
    socket.onmessage = ({ data }) => this.#hear(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    this.#expectAnswer(CONNECT_WITHIN_MS);
  }

  #protocols() {
    const token = typeof this.#token === "function" ? this.#token() : this.#token;
    return token ? ["lockstep.v1.json", `bearer.${token}`] : [];
  }

  /** Leave for good. */
  close() {
    this.#drop();
    this.#end("closed");
  }

  /** Find out now whether the connection still stands; when waiting to come back, come back now. */
  probe() {
    if (this.status === "online") this.#sendPing();
    else if (this.status === "offline") this.connect();
  }

  #hear(data) {
    const message = JSON.parse(data);
    switch (message.type) {
      case "CONNECTED":
        // From here on every change is heard; what changed before is asked for.
        this.#online();
        this.#send({ type: "RECONNECT" });
        break;
      case "STATE_UPDATE":
        if (isNewer(message.state, this.state)) this.#show(message, false);
        break;
      case "STATE_SYNC":
        this.#show(message, true);
        break;
      case "PONG":
        this.#hearPong(message);
        break;
      case "SESSION_DELETED":
        if (this.state?.epoch > message.epoch) break; // an earlier session of the same id
        this.state = null;
        this.#emit("deleted");
        break;
      case "ERROR":
        if (message.code === "SESSION_NOT_FOUND") this.state = null;
        this.#emit(message.code === "SESSION_NOT_FOUND" ? "missing" : "error", message);
        break;
      default:
        this.#emit("message", message);
    }
  }

  #show({ state, timestamp }, sync) {
    this.state = state;
    this.#emit("state", { state, timestamp, sync });
  }

  #online() {
    clearTimeout(this.#patienceTimer);
    this.#onlineSinceMs = performance.now();
    this.time.forget();
    this.#burst = BURST;
    this.#ping.isDue = false;
    this.#setStatus("online");
    this.#sendPing();
  }

  #sendPing() {
    if (this.#ping.isDue) return;
    clearTimeout(this.#pingTimer);
    this.#ping = { id: this.#ping.id + 1, sentMs: this.time.localMs(), isDue: true };
    this.#send({ type: "PING", id: this.#ping.id });
    this.#expectAnswer(PONG_WITHIN_MS);
  }

  #hearPong({ id, timestamp }) {
    const receivedMs = this.time.localMs();
    if (id !== this.#ping.id) return;
    clearTimeout(this.#patienceTimer);
    this.#ping.isDue = false;
    this.time.learn(this.#ping.sentMs, receivedMs, timestamp);
    this.#burst -= 1;
    this.#pingTimer = setTimeout(() => this.#sendPing(), this.#burst > 0 ? BURST_PAUSE_MS : PING_EVERY_MS);
  }

  /** A dead line closes nothing: the browser may take minutes to notice, so silence is taken for the end. */
  #expectAnswer(withinMs) {
    clearTimeout(this.#patienceTimer);
    this.#patienceTimer = setTimeout(() => this.#lost(1006, "No answer"), withinMs);
  }

  #lost(code, reason) {
    const lastedMs = this.status === "online" ? performance.now() - this.#onlineSinceMs : 0;
    this.#drop();
    const fate = afterClose(code);
    if (fate !== "retry") return this.#end(fate, { code, reason });
    // Who was sent away is expected elsewhere, also when that happens several times in a rolling restart.
    if (lastedMs > STEADY_AFTER_MS || (lastedMs > 0 && code === 1001)) this.#attempt = 0;
    const retryMs = backoffMs(this.#attempt++);
    this.#retryTimer = setTimeout(() => this.connect(), retryMs);
    this.#setStatus("offline", { code, reason, retryMs });
  }

  #drop() {
    for (const timer of [this.#retryTimer, this.#pingTimer, this.#patienceTimer]) clearTimeout(timer);
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onmessage = socket.onclose = null; // what it still says is no longer about us
    socket.close();
  }

  #end(status, detail) {
    this.#listening?.abort();
    this.#listening = null;
    this.#setStatus(status, detail);
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #setStatus(status, detail = {}) {
    this.status = status;
    this.#emit("status", { status, ...detail });
  }

  #emit(type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** A network that returns and a page that is looked at again are worth a question before its time. */
  #listenToTheMachine() {
    if (this.#listening || !globalThis.document) return;
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    addEventListener("online", () => this.probe(), { signal });
    addEventListener("offline", () => this.probe(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden || this.probe(), { signal });
  }
}
