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
const JUMP_MS = 250; // some browsers round both clocks to 100 ms

/**
 * What time it is at the server, measured by questions and answers.
 *
 * Its basis is `performance.now()`: setting the local wall clock does not move it. The answer with the shortest
 * round trip counts, for it can be wrong by half of that at most. Old answers that a new one contradicts are
 * forgotten: the server's clock was set.
 *
 * On some platforms the monotonic clock stands still while the machine sleeps. The wall clock does not, so a jump
 * between the two makes `errorMs` infinite until something is measured anew. Somebody who sets the wall clock
 * causes the same: the two cannot be told apart, and a needless measurement costs little.
 */
export class ServerTime {
  #samples = [];
  #offsetMs;
  #wallLeadMs;

  /**
   * @param {() => number} [localMs] a monotonic clock
   * @param {() => number} [wallMs] a clock that also runs while the machine sleeps
   */
  constructor(localMs = () => performance.now(), wallMs = () => Date.now()) {
    this.localMs = localMs;
    this.wallMs = wallMs;
    this.#wallLeadMs = wallMs() - localMs();
    this.#offsetMs = this.#wallLeadMs; // the best guess until the server has said something
  }

  /** Server time in epoch ms, not rounded. */
  now() {
    return this.localMs() + this.#offsetMs;
  }

  /** The most by which `now()` can be wrong, in ms; Infinity as long as nothing was measured, and after a jump. */
  get errorMs() {
    if (this.#samples.length === 0 || this.hasJumped) return Infinity;
    return Math.min(...this.#samples.map((sample) => sample.roundTripMs)) / 2;
  }

  /** Whether the wall clock and the monotonic one have moved apart since the last answer, or since `forget()`. */
  get hasJumped() {
    return Math.abs(this.wallMs() - this.localMs() - this.#wallLeadMs) > JUMP_MS;
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
    if (this.hasJumped) this.forget();
    this.#wallLeadMs = this.wallMs() - this.localMs(); // the two drift apart a little all the time
    const agrees = (old) => old.leastMs <= sample.mostMs && sample.leastMs <= old.mostMs;
    const kept = this.#samples.every(agrees) ? this.#samples.slice(1 - SAMPLES_KEPT) : [];
    this.#samples = [...kept, sample];
    const best = this.#samples.reduce((a, b) => (b.roundTripMs < a.roundTripMs ? b : a));
    this.#offsetMs = (best.leastMs + best.mostMs) / 2;
  }

  /** Measure anew, as after a jump or a reconnect. `now()` goes on as before until the first answer. */
  forget() {
    this.#samples = [];
    this.#wallLeadMs = this.wallMs() - this.localMs();
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

const TOKEN_REFUSED = 4501;

/**
 * What a close code asks for. That a session was deleted is said by SESSION_DELETED: a bare 1000 can come from
 * anything on the way.
 *
 * @returns {"retry" | "refused"} come back, after 4501 with another token; don't come back like this
 */
export function afterClose(code) {
  return code === 1008 || (code >= 4500 && code <= 4999 && code !== TOKEN_REFUSED) ? "refused" : "retry";
}

const CONNECT_WITHIN_MS = 10_000; // and as long for a token
const PING_EVERY_MS = 5_000;
const PONG_WITHIN_MS = 4_000;
const BURST = 5; // PINGs in quick succession after each connect: one of them will meet no queue
const BURST_PAUSE_MS = 60;
const STEADY_AFTER_MS = 10_000; // a connection that lasted this long starts the backoff anew
const LOOK_AT_CLOCKS_EVERY_MS = 1_000;
const SLEPT_MS = 5_000; // timers of a visible page are hardly ever this late

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** What the server said, or undefined where that is no message: the page of a proxy, a payload gone wrong, anything. */
function parse(data) {
  let message;
  try {
    message = JSON.parse(data);
  } catch {
    return undefined;
  }
  if (typeof message?.type !== "string") return undefined;
  if (message.type === "PONG" && !Number.isFinite(message.timestamp)) return undefined;
  if (["STATE_UPDATE", "STATE_SYNC"].includes(message.type) && !isObject(message.state)) return undefined;
  return message;
}

/**
 * One session, followed over a WebSocket for as long as it exists.
 *
 * It connects, asks for the present state, measures the server's time, notices when the line is dead though
 * nothing has said so, and comes back. It never invents a state: `state` is always one that the server sent.
 * Nothing that a listener or a token function does or throws keeps it from coming back, `close()` apart.
 *
 * Events, each a CustomEvent with these fields in `detail`:
 *
 * - `state` {state, timestamp, sync}: a newer state, or with `sync` the one to show instead of whatever was shown
 * - `missing` {}: connected, but there is no such session; should it be created, `state` follows
 * - `deleted` {}: the session was deleted
 * - `status` {status, retryMs?, code?, reason?, error?}: see `status`; `error` is what a token function threw
 * - `error` {code, message}: the server did not understand or could not do something; INVALID_MESSAGE also where
 *   this client did not understand the server
 * - `message` {...}: whatever else is published to the session's clients
 */
export class Lockstep extends EventTarget {
  /** @type {object | null} the latest state */
  state = null;
  /**
   * "connecting" at first, "online", "offline" (and coming back); "unsure": connected, but the machine has slept or
   * its clock was set, and the server's time is being measured anew. For good: "gone" (the session was deleted),
   * "refused" (the server wants no more of this), "closed" (by `close()`); `connect()` begins anew.
   */
  status = "connecting";
  time = new ServerTime();

  #url;
  #token;
  #line = null; // one attempt to connect, and the connection that becomes of it: {socket, isDeleted}
  #attempt = 0;
  #onlineSinceMs = 0;
  #retryTimer;
  #pingTimer;
  #patienceTimer; // runs while an answer is due: to the call for a token, to the connect, or to a PING
  #ping = { id: 0, sentMs: 0, isDue: false };
  #burst = 0;
  #watching = null;
  #clocksSeenMs = 0;

  /**
   * @param {string | URL} url the server's `/ws`, as ws:, wss:, http: or https:, or relative to the document
   * @param {string} sessionId
   * @param {{ token?: string | (() => string | Promise<string>) }} [options] where the server wants tokens. A
   *   function is asked anew for each connection, so also after the token it gave has run out (4501). One that
   *   throws, or has not answered after 10 s, has cost an attempt, no more. There is nothing else to try than a
   *   string: once refused, it is refused for good.
   */
  constructor(url, sessionId, { token } = {}) {
    super();
    if (typeof token !== "function" && !/^[\w.-]*$/.test(token ?? "")) {
      throw new TypeError("token is neither a JWT nor a function that gives one");
    }
    this.#token = token;
    this.#url = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    if (!/^wss?:$/.test(this.#url.protocol)) throw new TypeError(`${url} is not ws:, wss:, http: or https:`);
    this.#url.hash = "";
    this.#url.searchParams.set("sessionId", sessionId);
  }

  /** Connect, and stay connected until `close()` or until the server ends it for good. */
  connect() {
    if (this.#line) return;
    clearTimeout(this.#retryTimer);
    this.#watchTheMachine();
    const line = (this.#line = { socket: null, isDeleted: false });
    if (!["connecting", "offline"].includes(this.status)) this.#setStatus("connecting");
    this.#open(line);
  }

  /** A line that was given up meanwhile does nothing any more: `#line` is another one then, or none. */
  async #open(line) {
    if (line !== this.#line) return;
    this.#expectAnswer(CONNECT_WITHIN_MS, { reason: "No token" });
    try {
      const token = typeof this.#token === "function" ? await this.#token() : this.#token;
      if (line !== this.#line) return;
      line.socket = new WebSocket(this.#url, token ? ["lockstep.v1.json", `bearer.${token}`] : []);
    } catch (error) {
      if (line === this.#line) this.#lost({ reason: "No token", error });
      return;
    }
    line.socket.onmessage = ({ data }) => {
      this.#lookAtClocks();
      if (line === this.#line) this.#hear(data);
    };
    line.socket.onclose = ({ code, reason }) => this.#lost({ code, reason });
    this.#expectAnswer(CONNECT_WITHIN_MS);
  }

  /** Leave for good. */
  close() {
    this.#drop();
    this.#end("closed");
  }

  /** Find out now whether the connection still stands; when waiting to come back, come back now. */
  probe() {
    if (this.#isOnline) this.#sendPing();
    else if (this.status === "offline") this.connect();
  }

  get #isOnline() {
    return this.status === "online" || this.status === "unsure";
  }

  #hear(data) {
    const message = parse(data);
    switch (message?.type) {
      case undefined:
        this.#emit("error", { code: "INVALID_MESSAGE", message: "The server sent what is no message" });
        break;
      case "CONNECTED":
        this.#online();
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
        this.#line.isDeleted = true;
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
    this.#line.isDeleted = false; // created anew
    this.#emit("state", { state, timestamp, sync });
  }

  #online() {
    this.#onlineSinceMs = performance.now();
    this.#measureAnew();
    // From here on every change is heard; what changed before is asked for.
    this.#send({ type: "RECONNECT" });
    this.#setStatus("online");
  }

  #measureAnew() {
    this.time.forget();
    this.#burst = BURST;
    this.#ping.isDue = false;
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
    if (!this.#ping.isDue || id !== this.#ping.id) return;
    clearTimeout(this.#patienceTimer);
    this.#ping.isDue = false;
    this.time.learn(this.#ping.sentMs, receivedMs, timestamp);
    this.#burst -= 1;
    this.#pingTimer = setTimeout(() => this.#sendPing(), this.#burst > 0 ? BURST_PAUSE_MS : PING_EVERY_MS);
    if (this.status === "unsure") this.#setStatus("online");
  }

  /** A dead line closes nothing: the browser may take minutes to notice, so silence is taken for the end. */
  #expectAnswer(withinMs, orElse = { code: 1006, reason: "No answer" }) {
    clearTimeout(this.#patienceTimer);
    this.#patienceTimer = setTimeout(() => this.#lost(orElse), withinMs);
  }

  #lost(why) {
    const lastedMs = this.#isOnline ? performance.now() - this.#onlineSinceMs : 0;
    const isDeleted = why.code === 1000 && this.#line.isDeleted;
    this.#drop();
    if (isDeleted) return this.#end("gone", why);
    const hasNoOther = why.code === TOKEN_REFUSED && typeof this.#token !== "function";
    if (hasNoOther || afterClose(why.code) === "refused") return this.#end("refused", why);
    // Who was sent away is expected elsewhere, also when that happens several times in a rolling restart.
    if (lastedMs > STEADY_AFTER_MS || (lastedMs > 0 && why.code === 1001)) this.#attempt = 0;
    const retryMs = backoffMs(this.#attempt++);
    this.#retryTimer = setTimeout(() => this.connect(), retryMs);
    this.#setStatus("offline", { ...why, retryMs });
  }

  #drop() {
    for (const timer of [this.#retryTimer, this.#pingTimer, this.#patienceTimer]) clearTimeout(timer);
    const socket = this.#line?.socket;
    this.#line = null;
    if (!socket) return;
    socket.onmessage = socket.onclose = null; // what it still says is no longer about us
    socket.close();
  }

  #end(status, detail) {
    this.#watching?.abort();
    this.#watching = null;
    this.#attempt = 0;
    this.#setStatus(status, detail);
  }

  #send(message) {
    const socket = this.#line?.socket;
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  #setStatus(status, detail = {}) {
    this.status = status;
    this.#emit("status", { status, ...detail });
  }

  /** The last thing that any of the methods above do: a listener may call every method there is. */
  #emit(type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /**
   * Has this machine slept? Where the monotonic clock stood still meanwhile, it and the wall clock have moved apart;
   * where it ran on, a timer is late. What was under way was asked before, so its answer would mislead.
   */
  #lookAtClocks() {
    const nowMs = this.time.localMs();
    // The timers of a hidden page come seldom.
    const isLate = nowMs - this.#clocksSeenMs > SLEPT_MS && !globalThis.document?.hidden;
    this.#clocksSeenMs = nowMs;
    if (!isLate && !this.time.hasJumped) return;
    if (!this.#isOnline) {
      this.time.forget();
      return this.probe();
    }
    this.#measureAnew();
    this.#setStatus("unsure");
  }

  /** A network that returns and a page that is looked at again are worth a question before its time. */
  #watchTheMachine() {
    if (this.#watching) return;
    this.#watching = new AbortController();
    this.#clocksSeenMs = this.time.localMs();
    const { signal } = this.#watching;
    const looking = setInterval(() => this.#lookAtClocks(), LOOK_AT_CLOCKS_EVERY_MS);
    signal.addEventListener("abort", () => clearInterval(looking));
    if (!globalThis.document) return;
    addEventListener("online", () => this.probe(), { signal });
    addEventListener("offline", () => this.probe(), { signal });
    document.addEventListener(
      "visibilitychange",
      () => {
        this.#clocksSeenMs = this.time.localMs(); // late timers of a hidden page say nothing
        if (document.hidden) return;
        this.#lookAtClocks();
        this.probe();
      },
      { signal },
    );
  }
}
