/** The connection: it comes back by itself and always ends up with the latest state. */

import { TOKEN_REFUSED, afterClose, backoffMs } from "./backoff.js";
import { applyChanges, isNewer } from "./changes.js";
import { ServerTime } from "./server-time.js";

const MESSAGE_TOO_BIG = 1009;

const V1 = "lockstep.v1.json";
const V2 = "lockstep.v2.json";
const CONNECT_WITHIN_MS = 10_000; // and as long for a token
const PING_EVERY_MS = 5_000;
const PONG_WITHIN_MS = 4_000;
const BURST = 5; // PINGs in quick succession after each connect: one of them will meet no queue
const BURST_PAUSE_MS = 60;
const STEADY_AFTER_MS = 10_000; // a connection that lasted this long starts the backoff anew
const LOOK_AT_CLOCKS_EVERY_MS = 1_000;
const SLEPT_MS = 5_000; // timers of a visible page are hardly ever this late
const RENEW_BEFORE_MS = 60_000; // a token is exchanged about so long before it runs out
const LONGEST_TIMER_MS = 2 ** 31 - 1;
const MAX_UNDER_WAY = 12; // commands; of more than 16 requests the server leaves the rest unread, and so our PINGs

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

const hasState = ({ state }) => isObject(state);
const isListOf = (isOne, value) => Array.isArray(value) && value.every(isOne);
const areChanges = (value) => isObject(value) && isListOf(isObject, value.participants ?? []);
const isUpdate = (value) =>
  isObject(value) &&
  typeof value.from === "string" &&
  typeof value.position === "string" &&
  areChanges(value.changes) &&
  isListOf(isObject, value.events);

const isSubject = (value) => isObject(value) && typeof value.subject === "string";
const areSubjects = (value) => value === undefined || isListOf(isSubject, value);
const isPresence = (value) =>
  isObject(value) &&
  Number.isFinite(value.anonymous) &&
  Number.isFinite(value.total) &&
  [value.present, value.joined, value.left].every(areSubjects);
const isSubscribed = ({ updates, state, presence }) =>
  (updates ? isListOf(isUpdate, updates) : state === null || isObject(state)) &&
  (presence === undefined || isPresence(presence));

/** By protocol and type: whether a message has what is needed of it. */
const IS_WHOLE = {
  [V1]: new Map([
    ["PONG", ({ timestamp }) => Number.isFinite(timestamp)],
    ["STATE_UPDATE", hasState],
    ["STATE_SYNC", hasState],
  ]),
  [V2]: new Map([
    ["PONG", ({ timestamp, receivedAt }) => Number.isFinite(timestamp) && Number.isFinite(receivedAt)],
    ["SNAPSHOT", hasState],
    ["UPDATE", isUpdate],
    ["SUBSCRIBED", isSubscribed],
    ["PRESENCE", isPresence],
    ["MESSAGE", ({ message }) => isObject(message)],
  ]),
};

/** What the server said, or undefined where that is no message: the page of a proxy, a payload gone wrong, anything. */
function parse(data, protocol) {
  let message;
  try {
    message = JSON.parse(data);
  } catch {
    return undefined;
  }
  if (typeof message?.type !== "string") return undefined;
  return IS_WHOLE[protocol].get(message.type)?.(message) === false ? undefined : message;
}

/** When a token runs out, in epoch ms; undefined where it does not, or is not to be read. */
function expiryMs(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return Number.isFinite(claims.exp) ? claims.exp * 1000 : undefined;
  } catch {
    return undefined;
  }
}

// crypto.randomUUID exists on https and localhost only.
const randomKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** Why a command was not done: `code` and `details` as REST has them, `retryAfterMs` where trying later may help. */
export class CommandError extends Error {
  constructor({ code, message, details, retryAfterMs }) {
    super(message);
    Object.assign(this, { name: "CommandError", code, details, retryAfterMs });
  }
}

// The server could not, for reasons of its own; another time it can.
const TRIED_AGAIN = ["BROKER_UNAVAILABLE", "SESSION_BUSY", "RECEIVED_TOO_LONG_AGO", "SHUTTING_DOWN"];

/*
 * A browser gives up a connection of which it named subprotocols if the server answers none, as servers of
 * before 0.2 do. That looks like any failure, so the next attempt names none. Should that one succeed, the server
 * may have been away before: another that names them decides. What an attempt that failed makes of each:
 */
const AFTER_FAILURE = { unknown: "doubted", doubted: "unknown", tested: "silent", silent: "unknown", known: "known" };

/**
 * One session, followed over a WebSocket.
 *
 * It connects, asks for the present state, or for what it missed, measures the server's time, notices when the line
 * is dead though nothing has said so, and comes back. It never invents a state: `state` is always one that the server
 * had. Nothing that a listener or a token function does or throws keeps it from coming back, `close()` apart.
 *
 * Events, each a CustomEvent with these fields in `detail`:
 *
 * - `state` {state, timestamp, sync, events?, reason?}: a newer state, or with `sync` the one to show instead of
 *   whatever was shown. In protocol v2 `events` are what led to it, each with its `data`: every one comes once and in
 *   order, except those that a `sync` stands for, which only the server's history tells; `reason` says why it came
 * - `missing` {}: connected, but there is no such session; should it be created, `state` follows
 * - `deleted` {}: the session was deleted
 * - `presence` {presence, joined?, left?}: see `presence`; who came and who left, where that is what has changed
 * - `status` {status, retryMs?, code?, reason?, error?}: see `status`; `error` is what a token function threw
 * - `error` {code, message}: the server did not understand or could not do something; INVALID_MESSAGE also where
 *   this client did not understand the server
 * - `message` {...}: whatever else is published to the session's clients
 */
export class Lockstep extends EventTarget {
  /** @type {object | null} the latest state */
  state = null;
  /** @type {string | null} the server's name of that state, in protocol v2: to compare, and to hand back */
  position = null;
  /**
   * Who is connected, where the session was created with presence and the server speaks protocol v2; else null.
   *
   * `present` has each subject, the `sub` of its token, once: with its connections when it was told of, and since when
   * it is there (ISO 8601). Those without one are counted, `anonymous`; `total` is all of them. Where there are too many
   * for a list, `present` is null. Offline it is what was told last.
   *
   * @type {{ present: { subject: string, connections: number, since: string }[] | null, anonymous: number,
   *   total: number } | null}
   */
  presence = null;
  /**
   * "connecting" at first, "online", "offline" (and coming back); "unsure": connected, but the machine has slept or
   * its clock was set, and the server's time is being measured anew; "gone": the session was deleted, which with
   * protocol v1 is for good, while with v2 it is "online" again should the session be created anew. For good:
   * "refused" (the server wants no more of this), "closed" (by `close()`). `connect()` begins anew.
   */
  status = "connecting";
  time = new ServerTime();

  #url;
  #sessionId;
  #token;
  #subprotocols = "unknown"; // whether the server answers them: see AFTER_FAILURE
  #line = null; // one attempt to connect, and the connection that becomes of it
  #attempt = 0;
  #onlineSinceMs = 0;
  #retryTimer;
  #pingTimer;
  #patienceTimer; // runs while an answer is due: to the call for a token, to the connect, or to a PING
  #askTimer; // runs until the state is asked for again, which the server could not give
  #renewTimer; // runs until the token function is asked for the next token
  #lastId = 0; // of PINGs and requests
  #ping = { id: 0, sentMs: 0, isDue: false };
  #burst = 0;
  #commands = new Map(); // by id: those that have no answer yet, in their order
  #watching = null;
  #clocksSeenMs = 0;

  /**
   * @param {string | URL} url the server's `/ws`, as ws:, wss:, http: or https:, or relative to the document
   * @param {string} sessionId
   * @param {{ token?: string | (() => string | Promise<string>) }} [options] where the server wants tokens. A
   *   function is asked anew for each connection, so also after the token it gave has run out (4501), and with
   *   protocol v2 shortly before that, so that the connection lasts. One that throws, or has not answered after 10 s,
   *   has cost an attempt, no more. There is nothing else to try than a string: once refused, it is refused for good.
   */
  constructor(url, sessionId, { token } = {}) {
    super();
    if (typeof token !== "function" && !/^[\w.-]*$/.test(token ?? "")) {
      throw new TypeError("token is neither a JWT nor a function that gives one");
    }
    this.#token = token;
    this.#sessionId = sessionId;
    this.#url = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    if (!/^wss?:$/.test(this.#url.protocol)) throw new TypeError(`${url} is not ws:, wss:, http: or https:`);
    this.#url.hash = "";
    this.#url.searchParams.set("sessionId", sessionId);
  }

  /** Connect, and stay connected until `close()` or until the server ends it for good. */
  connect() {
    if (this.#line && this.status !== "gone") return;
    this.#drop();
    this.#watchTheMachine();
    const line = this.#newLine();
    if (!["connecting", "offline"].includes(this.status)) this.#setStatus("connecting");
    this.#open(line);
  }

  #newLine() {
    return (this.#line = {
      socket: null,
      token: undefined, // the one it is open by
      protocol: V1,
      isOnline: false,
      isDeleted: false,
      isSubscribed: false, // from here on in protocol v2 only
      underWay: new Set(), // ids of the commands that have no answer yet, also those that nobody waits for any more
      askedId: null, // of the SUBSCRIBE or SYNC that has no answer yet
      asked: 0, // in vain
      renewal: null, // {id, token} of the REAUTH that has no answer yet
      reconnectAfterMs: undefined,
    });
  }

  /** A line that was given up meanwhile does nothing any more: `#line` is another one then, or none. */
  async #open(line) {
    if (line !== this.#line) return;
    this.#expectAnswer(CONNECT_WITHIN_MS, { reason: "No token" });
    try {
      const token = typeof this.#token === "function" ? await this.#token() : this.#token;
      if (line !== this.#line) return;
      line.token = token || undefined;
      line.socket = new WebSocket(this.#address(), this.#offer(token));
    } catch (error) {
      if (line === this.#line) this.#lost({ reason: "No token", error });
      return;
    }
    line.socket.onopen = () => this.#opened(line);
    line.socket.onmessage = ({ data }) => {
      this.#lookAtClocks();
      if (line === this.#line) this.#receive(data);
    };
    line.socket.onclose = ({ code, reason }) => this.#lost({ code, reason });
    this.#expectAnswer(CONNECT_WITHIN_MS);
  }

  #address() {
    const url = new URL(this.#url);
    if (this.position !== null) url.searchParams.set("position", this.position);
    return url;
  }

  /** The subprotocols to name. Who has a token must name some: a browser can hand it over in no other way. */
  #offer(token) {
    if (token) return [V2, V1, `bearer.${token}`];
    return this.#subprotocols === "doubted" || this.#subprotocols === "silent" ? [] : [V2, V1];
  }

  #opened(line) {
    if (line !== this.#line) return;
    line.protocol = line.socket.protocol || V1;
    if (line.socket.protocol) {
      this.#subprotocols = "known";
    } else if (this.#subprotocols === "doubted") {
      this.#subprotocols = "tested";
      this.#drop();
      this.#open(this.#newLine());
    }
  }

  /** Leave for good. */
  close() {
    this.#drop();
    this.#end("closed");
  }

  /** Find out now whether the connection still stands; when waiting to come back, come back now. */
  probe() {
    if (this.#line?.isOnline) this.#sendPing();
    else if (this.status === "offline") this.connect();
  }

  /**
   * Change the session: over this connection, so with protocol v2 only, as its token allows.
   *
   * The command waits for the connection, and is sent again after a lost one. It is applied once all the same: by its
   * key the server recognises it. What must not happen late says so in its body, by `expected_version` or
   * `expected_participant_id`.
   *
   * @param {string} name start, switch, pause, resume, adjust, complete, cancel, seat, unseat, annotate
   * @param {object} [body] as REST's command has it
   * @param {{ idempotencyKey?: string, signal?: AbortSignal }} [options] the key is generated unless there is one;
   *   with `signal` one stops to wait: whether the command was applied is then unknown
   * @returns {Promise<{position: string, timestamp: number, replayed?: boolean, lap_ms?: number,
   *   expired_participant_id?: string}>} it was applied; the state that it led to comes as event `state`, before or
   *   after. Rejects with a CommandError; its codes are the server's, and PROTOCOL_V1 (the server is too old),
   *   DISCONNECTED (the connection has ended for good; what became of the command is unknown), MESSAGE_TOO_BIG
   */
  command(name, body, { idempotencyKey = randomKey(), signal } = {}) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const id = ++this.#lastId;
      const message = { type: "COMMAND", id, sessionId: this.#sessionId, command: name, body, idempotencyKey };
      this.#commands.set(id, { text: JSON.stringify(message), resolve, reject, timer: undefined });
      signal?.addEventListener("abort", () => this.#settled(id)?.reject(signal.reason), { once: true });
      const hasEnded = ["refused", "closed"].includes(this.status) || (this.status === "gone" && !this.#line);
      if (hasEnded) this.#rejectCommands({ code: "DISCONNECTED", message: `Not connected: ${this.status}` });
      else if (this.#line?.isOnline) this.#sendCommands();
    });
  }

  /** Send those whose turn it is. One that is to be sent again later holds up those behind it. */
  #sendCommands() {
    const { protocol, underWay } = this.#line;
    if (protocol === V1) {
      this.#rejectCommands({ code: "PROTOCOL_V1", message: "This server takes commands by REST only" });
      return;
    }
    for (const [id, command] of this.#commands) {
      if (command.timer !== undefined || underWay.size >= MAX_UNDER_WAY) return;
      if (underWay.has(id)) continue;
      underWay.add(id);
      this.#sendText(command.text);
    }
  }

  /** The command of this id, which from here on has its answer; undefined if none waits for one. */
  #settled(id) {
    const command = this.#commands.get(id);
    clearTimeout(command?.timer);
    this.#commands.delete(id);
    return command;
  }

  #rejectCommands(error, ids = [...this.#commands.keys()]) {
    for (const id of ids) this.#settled(id).reject(new CommandError(error));
  }

  #receive(data) {
    const { protocol } = this.#line;
    const message = parse(data, protocol);
    if (message === undefined) {
      this.#emit("error", { code: "INVALID_MESSAGE", message: "The server sent what is no message" });
    } else if (message.type === "PONG") {
      this.#receivePong(message);
    } else if (protocol === V2) {
      this.#receiveV2(message);
    } else {
      this.#receiveV1(message);
    }
  }

  /* Protocol v1: whole states. */

  #receiveV1(message) {
    switch (message.type) {
      case "CONNECTED":
        // From here on every change is heard; what changed before is asked for.
        this.presence = null; // nothing is told of it
        this.#send({ type: "RECONNECT" });
        this.#online();
        break;
      case "STATE_UPDATE":
        if (isNewer(message.state, this.state)) this.#show(message, null, { sync: false });
        break;
      case "STATE_SYNC":
        this.#show(message, null, { sync: true });
        break;
      case "SESSION_DELETED":
        if (this.state?.epoch > message.epoch) break; // an earlier session of the same id
        this.#forgetState();
        this.#line.isDeleted = true;
        this.#emit("deleted");
        break;
      case "ERROR":
        if (message.code === "SESSION_NOT_FOUND") this.#missing(message);
        else this.#emit("error", message);
        break;
      default:
        this.#emit("message", message);
    }
  }

  /* Protocol v2: what changed. */

  #receiveV2(message) {
    switch (message.type) {
      case "WELCOME":
        this.#renewBefore(expiryMs(this.#line.token ?? "") - message.timestamp);
        this.#online();
        break;
      case "SUBSCRIBED":
        this.#subscribed(message);
        break;
      case "UPDATE":
        this.#update(message);
        break;
      case "SNAPSHOT":
        if (message.id === this.#line.askedId) this.#line.askedId = null;
        this.#show(message, message.position, { sync: message.reason !== "created", reason: message.reason });
        break;
      case "DELETED":
        this.#deleted();
        break;
      case "MESSAGE":
        this.#emit("message", message.message);
        break;
      case "PRESENCE":
        this.#presenceChanged(message);
        break;
      case "RESULT": {
        const { type, id, sessionId, ...result } = message;
        this.#line.underWay.delete(id);
        this.#settled(id)?.resolve(result);
        this.#sendCommands();
        break;
      }
      case "REAUTHENTICATED":
        this.#renewed(message);
        break;
      case "UNSUBSCRIBED":
        this.#sentAway(message);
        break;
      case "GOING_AWAY":
        this.#line.reconnectAfterMs = message.reconnectAfterMs;
        break;
      case "ERROR":
        this.#receiveError(message);
        break;
      default: // of a later server
    }
  }

  #subscribed(message) {
    const line = this.#line;
    line.isSubscribed = true;
    line.askedId = null;
    line.asked = 0;
    const { present = null, ...counts } = message.presence ?? {};
    this.presence = message.presence ? { present, ...counts } : null;
    if (message.updates) {
      for (const update of message.updates) if (line === this.#line) this.#update(update);
    } else if (message.state === null) {
      this.#missing({});
    } else {
      this.#show(message, message.position, { sync: true, reason: "requested" });
    }
    if (line === this.#line && this.presence) this.#emit("presence", { presence: this.presence });
  }

  /** Without `joined` and `left` there are too many for a list; after that, and at first, `joined` has everybody. */
  #presenceChanged({ joined, left, anonymous, total }) {
    let present = null;
    if (joined || left) {
      const bySubject = new Map(this.presence?.present?.map((each) => [each.subject, each]));
      for (const { subject } of left ?? []) bySubject.delete(subject);
      for (const each of joined ?? []) bySubject.set(each.subject, each);
      present = [...bySubject.values()];
    }
    this.presence = { present, anonymous, total };
    this.#emit("presence", { presence: this.presence, joined, left });
  }

  #update({ timestamp, from, position, changes, events }) {
    if (from !== this.position) this.#ask();
    else this.#show({ state: applyChanges(this.state, changes), timestamp }, position, { sync: false, events });
  }

  /** Ask for the state, unless that has been done. */
  #ask() {
    const line = this.#line;
    if (line.askedId !== null) return;
    clearTimeout(this.#askTimer);
    line.askedId = ++this.#lastId;
    const type = line.isSubscribed ? "SYNC" : "SUBSCRIBE";
    const position = line.isSubscribed ? undefined : (this.position ?? undefined);
    this.#send({ type, id: line.askedId, sessionId: this.#sessionId, position });
  }

  #receiveError(error) {
    const line = this.#line;
    const { id, code } = error;
    if (line.underWay.delete(id)) {
      this.#commandFailed(id, error);
      this.#sendCommands();
    } else if (id !== undefined && id === line.renewal?.id) {
      line.renewal = null; // the connection lasts as long as its token, and comes back with the other one
      this.#emit("error", error);
    } else if (id === undefined ? line.isSubscribed || code === "INVALID_MESSAGE" : id !== line.askedId) {
      this.#emit("error", error);
    } else {
      this.#askedInVain(error);
    }
  }

  /** `error` answers SYNC or SUBSCRIBE; without an id the one that the URL stands for. */
  #askedInVain(error) {
    const line = this.#line;
    line.askedId = null;
    if (error.code === "SESSION_NOT_FOUND") return this.#missing(error);
    if (error.code === "NOT_SUBSCRIBED") line.isSubscribed = false;
    if (["FORBIDDEN", "UNAUTHORIZED"].includes(error.code)) return this.#sentAway(error);
    if (error.code === "SESSION_FULL") return this.#lost({ code: 4002, reason: error.message }); // as v1 says it
    const waitMs = (error.retryAfterMs ?? 0) + backoffMs(line.asked++);
    clearTimeout(this.#askTimer);
    this.#askTimer = setTimeout(() => this.#ask(), waitMs);
    this.#emit("error", error);
  }

  #commandFailed(id, error) {
    const command = this.#commands.get(id);
    if (!TRIED_AGAIN.includes(error.code)) return this.#settled(id)?.reject(new CommandError(error));
    const waitMs = (error.retryAfterMs ?? 0) + backoffMs(1);
    if (command) command.timer = setTimeout(() => this.#sendAgain(command), waitMs);
  }

  #sendAgain(command) {
    command.timer = undefined;
    this.#sendCommands();
  }

  #deleted() {
    const line = this.#line;
    this.#forgetState();
    line.isDeleted = true;
    this.#emit("deleted");
    if (line === this.#line && line.isDeleted) this.#setStatus("gone");
  }

  /** This connection's part is over, the subscription that it is for having been ended. */
  #sentAway({ code, message: reason }) {
    if (code === undefined) return;
    this.#drop();
    this.#end("refused", { code: code === "DISCONNECTED" ? 4504 : 4503, reason });
  }

  /* Tokens that run out. */

  /** Ask for the next token before the present one has run out, at an instant that not everybody chooses. */
  #renewBefore(lastsMs) {
    clearTimeout(this.#renewTimer);
    if (typeof this.#token !== "function" || !(lastsMs > 0)) return;
    const waitMs = lastsMs - Math.min(RENEW_BEFORE_MS, lastsMs / 2) * (1 - Math.random() / 4);
    const line = this.#line;
    this.#renewTimer = setTimeout(() => this.#renew(line), Math.min(Math.max(waitMs, 1_000), LONGEST_TIMER_MS));
  }

  /** One that is not to be had, or no other than before, costs nothing: the present one lasts for a while. */
  async #renew(line) {
    const leftMs = expiryMs(line.token) - this.time.now();
    this.#renewBefore(leftMs);
    if (leftMs > 2 * RENEW_BEFORE_MS) return; // the timer was as long as one can be
    let token;
    try {
      token = await this.#token();
    } catch {
      return;
    }
    if (line !== this.#line || line.renewal || !token || token === line.token) return;
    line.renewal = { id: ++this.#lastId, token };
    this.#send({ type: "REAUTH", id: line.renewal.id, token });
  }

  #renewed({ id }) {
    const line = this.#line;
    if (id !== line.renewal?.id) return;
    line.token = line.renewal.token;
    line.renewal = null;
    this.#renewBefore(expiryMs(line.token) - this.time.now());
  }

  /* Both protocols. */

  #show({ state, timestamp }, position, how) {
    const line = this.#line;
    this.state = state;
    this.position = position;
    line.isDeleted = false; // created anew
    if (line.isOnline && this.status === "gone") this.#setStatus("online");
    // Unless a listener to that has given up, or begun anew.
    if (line === this.#line) this.#emit("state", { state, timestamp, ...how });
  }

  #missing(detail) {
    this.#forgetState();
    this.#emit("missing", detail);
  }

  #forgetState() {
    this.state = null;
    this.position = null;
    this.presence = null;
  }

  #online() {
    this.#onlineSinceMs = performance.now();
    this.#line.isOnline = true;
    this.#measureAnew();
    this.#sendCommands();
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
    this.#ping = { id: ++this.#lastId, sentMs: this.time.localMs(), isDue: true };
    this.#send({ type: "PING", id: this.#ping.id });
    this.#expectAnswer(PONG_WITHIN_MS);
  }

  #receivePong({ id, timestamp, receivedAt, errorMs }) {
    const receivedMs = this.time.localMs();
    if (!this.#ping.isDue || id !== this.#ping.id) return;
    clearTimeout(this.#patienceTimer);
    this.#ping.isDue = false;
    const serverErrorMs = errorMs === null ? Infinity : errorMs; // null: it does not know
    this.time.learn(this.#ping.sentMs, receivedMs, timestamp, receivedAt, serverErrorMs);
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
    const line = this.#line;
    const lastedMs = line.isOnline ? performance.now() - this.#onlineSinceMs : 0;
    const isGone = why.code === 1000 && line.isDeleted;
    if (line.socket && lastedMs === 0 && why.code === 1006) this.#subprotocols = AFTER_FAILURE[this.#subprotocols];
    this.#drop();
    if (isGone) return this.#end("gone", why);
    const hasNoOther = why.code === TOKEN_REFUSED && typeof this.#token !== "function";
    if (hasNoOther || afterClose(why.code) === "refused") return this.#end("refused", why);
    if (why.code === MESSAGE_TOO_BIG) this.#rejectTheLongest();
    // Who was sent away is expected elsewhere, also when that happens several times in a rolling restart.
    if (lastedMs > STEADY_AFTER_MS || (lastedMs > 0 && why.code === 1001)) this.#attempt = 0;
    const retryMs = line.reconnectAfterMs ?? backoffMs(this.#attempt++);
    this.#retryTimer = setTimeout(() => this.connect(), retryMs);
    this.#setStatus("offline", { ...why, retryMs });
  }

  /** Of the commands under way one was too big for the server, which says so by ending the connection. */
  #rejectTheLongest() {
    const [longest] = [...this.#commands].sort(([, one], [, other]) => other.text.length - one.text.length);
    if (!longest) return;
    this.#rejectCommands({ code: "MESSAGE_TOO_BIG", message: "Too long for a message: send it by REST" }, [longest[0]]);
  }

  #drop() {
    const timers = [this.#retryTimer, this.#pingTimer, this.#patienceTimer, this.#askTimer, this.#renewTimer];
    for (const timer of timers) clearTimeout(timer);
    for (const command of this.#commands.values()) {
      clearTimeout(command.timer);
      command.timer = undefined; // the next connection sends it
    }
    const socket = this.#line?.socket;
    this.#line = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null; // what it still says is no longer about us
    socket.close();
  }

  #end(status, detail) {
    this.#watching?.abort();
    this.#watching = null;
    this.#attempt = 0;
    this.#rejectCommands({ code: "DISCONNECTED", message: detail?.reason || `Not connected: ${status}` });
    this.#setStatus(status, detail);
  }

  #send(message) {
    this.#sendText(JSON.stringify(message));
  }

  #sendText(text) {
    const socket = this.#line?.socket;
    if (socket?.readyState === WebSocket.OPEN) socket.send(text);
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
    if (!this.#line?.isOnline) {
      this.time.forget();
      return this.probe();
    }
    this.#measureAnew();
    if (!this.#line.isDeleted) this.#setStatus("unsure");
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
