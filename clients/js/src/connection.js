/** The connection: it comes back by itself, and brings its subscriptions and commands along. */

import { afterClose, backoffMs, TOKEN_REFUSED } from "./backoff.js";
import { Commands } from "./commands.js";
import { LockstepError } from "./errors.js";
import { Line } from "./line.js";
import { Machine } from "./machine.js";
import { errorOf, parse } from "./messages.js";
import { Pings } from "./pings.js";
import { ServerTime } from "./server-time.js";
import { Timer } from "./timer.js";
import { isToken, NO_TOKEN, Renewal } from "./tokens.js";

/** @import { Follower } from "./follower.js" */
/** @import { ErrorMessage, SessionMessage } from "./messages.js" */
/** @import { Access, CommandOptions, LinkStatus, LockstepEvents, Token, WebSocketClass } from "./types.js" */
/** @typedef {Omit<LockstepEvents["status"], "status" | "retryMs">} Why */
/** @type {Record<number, string>} */
const CODES_OF_CLOSES = {
  1001: "SHUTTING_DOWN",
  1008: "POLICY_VIOLATION",
  1009: "MESSAGE_TOO_BIG",
  4501: "UNAUTHORIZED",
  4503: "FORBIDDEN",
};
const CONNECT_WITHIN_MS = 10_000; // and as long for a token
const STEADY_AFTER_MS = 10_000; // a connection that lasted this long starts the backoff anew

const FOREIGN = { code: "UNSUPPORTED_PROTOCOL", reason: "This server does not speak protocol v2" };

/** @param {Access} told */
const accessOf = ({ scope, subject }) => ({ ...(scope && { scope }), ...(subject && { subject }) });

/** All that is said to one server and heard from it. Events come last in whatever leads to them: listeners may do anything. */
export class Connection {
  /** @type {LinkStatus} */
  status = "connecting";
  time = new ServerTime();
  /** @type {Access | null} */
  access = null;
  /** @type {Map<string, Follower>} */
  #followers = new Map();
  /** @type {Set<string>} */
  #leaving = new Set(); // sessions that the server is still to be told to unsubscribe
  #commands = new Commands(() => this.pump());
  #pings = new Pings(
    this.time,
    (text) => this.#line?.send(text),
    () => this.#lost({ code: "DISCONNECTED", reason: "No answer" }),
  );
  #machine = new Machine(
    this.time,
    () => this.#jumped(),
    () => this.probe(),
    () => this.#left(),
  );
  /** @type {Renewal | null} */
  #renewal = null;
  /** @type {Line | null} */
  #line = null;
  #attempt = 0;
  #onlineSinceMs = 0;
  #timer = new Timer(); // runs until the next attempt, or while one waits for a token or for the server
  #url;
  #token;
  #WebSocket;
  #emit;

  /**
   * @param {string} url of the WebSocket
   * @param {Token | undefined} token
   * @param {WebSocketClass} WebSocket
   * @param {<Type extends keyof LockstepEvents>(type: Type, detail: LockstepEvents[Type]) => void} emit
   */
  constructor(url, token, WebSocket, emit) {
    this.#url = url;
    this.#token = token;
    this.#WebSocket = WebSocket;
    this.#emit = emit;
    if (typeof token === "function") {
      this.#renewal = new Renewal(
        token,
        () => this.time.now(),
        (next) => this.#exchange(next),
      );
    }
  }

  connect() {
    if (this.#line) return;
    this.#timer.clear();
    this.#machine.watch();
    const line = (this.#line = new Line());
    const isAnew = this.status === "refused";
    if (!["connecting", "offline"].includes(this.status)) this.#setStatus("connecting");
    if (isAnew) for (const follower of this.#followers.values()) follower.again();
    void this.#open(line);
  }

  close() {
    if (this.status === "closed") return;
    this.#end("closed", { code: "DISCONNECTED", reason: "Closed" });
  }

  probe() {
    if (this.#line?.isOnline) this.#pings.ping();
    else if (this.status === "offline") this.connect();
  }

  /** Send what is due, as much as the server reads at once. */
  pump() {
    const line = this.#line;
    if (!line?.isOnline) return;
    for (const sessionId of this.#leaving) {
      if (!line.requests.hasRoom) return;
      this.#leaving.delete(sessionId);
      line.requests.send(JSON.stringify({ type: "UNSUBSCRIBE", sessionId }), () => {});
    }
    for (const follower of this.#followers.values()) follower.ask(line.requests);
    this.#commands.send(line.requests);
  }

  /**
   * @param {Follower} follower
   */
  follow(follower) {
    this.#followers.set(follower.sessionId, follower);
    if (this.#line) this.pump();
    else if (this.status !== "offline") this.connect();
  }

  /**
   * @param {Follower} follower
   */
  unfollow(follower) {
    if (this.#followers.get(follower.sessionId) !== follower) return;
    this.#followers.delete(follower.sessionId);
    if (follower.isKept) this.#leaving.add(follower.sessionId);
    this.pump();
    if (follower.lost("closed")) follower.tell("closed");
  }

  /**
   * @param {string} sessionId
   * @param {string} name
   * @param {object | undefined} body
   * @param {CommandOptions} options
   */
  command(sessionId, name, body, options) {
    const given = this.#commands.give(sessionId, name, body, options);
    if (["refused", "closed"].includes(this.status)) this.#rejectCommands(`Not connected: ${this.status}`);
    return given;
  }

  /** @param {string} reason */
  #rejectCommands(reason) {
    this.#commands.rejectAll(new LockstepError("DISCONNECTED", reason));
  }

  /**
   * A line that was given up meanwhile does nothing any more: `#line` is another one then, or none.
   *
   * @param {Line} line
   */
  async #open(line) {
    if (line !== this.#line) return;
    let why = { code: "TOKEN_UNAVAILABLE", reason: "No token" };
    this.#expect(why);
    try {
      const token = typeof this.#token === "function" ? await this.#token() : this.#token;
      if (line !== this.#line) return;
      if (!isToken(token)) throw new TypeError(NO_TOKEN);
      why = { code: "DISCONNECTED", reason: "No answer" };
      this.#expect(why);
      line.open(
        this.#url,
        this.#WebSocket,
        token ?? "",
        () => this.#end("refused", FOREIGN),
        (data) => this.#receive(line, data),
        (code, reason) => this.#closed(code, reason),
      );
    } catch (error) {
      if (line === this.#line) this.#lost({ ...why, error });
    }
  }

  /**
   * @param {Line} line
   * @param {unknown} data
   */
  #receive(line, data) {
    this.#machine.look();
    if (line !== this.#line) return;
    const message = parse(data);
    switch (message.type) {
      case "WELCOME":
        this.access = accessOf(message);
        return this.#welcome(line, message.timestamp);
      case "PONG":
        if (this.#pings.receive(message) && this.status === "unsure") this.#setStatus("online");
        return;
      case "GOING_AWAY":
        line.reconnectAfterMs = message.reconnectAfterMs;
        return;
    }
    if ("id" in message && line.requests.receive(message)) return this.pump();
    const follower = "sessionId" in message && this.#followers.get(message.sessionId ?? "");
    if (follower) follower.receive(/** @type {SessionMessage} */ (message));
    else if (message.type === "ERROR") this.#failed(message);
  }

  /** @param {ErrorMessage} error */
  #failed(error) {
    this.#emit("error", { error: errorOf(error) });
  }

  /**
   * @param {Line} line
   * @param {number} nowMs
   */
  #welcome(line, nowMs) {
    this.#timer.clear();
    this.#onlineSinceMs = performance.now();
    line.isOnline = true;
    this.#renewal?.start(line.token, nowMs);
    this.#pings.measure();
    this.pump();
    this.#setStatus("online");
  }

  /** @param {string} token */
  #exchange(token) {
    const line = this.#line;
    if (!line || line.isRenewing) return;
    line.isRenewing = true;
    line.requests.send(JSON.stringify({ type: "REAUTH", token }), (answer) => {
      line.isRenewing = false;
      // Refused, the connection lasts as long as the token that it has, and comes back with the other one.
      if (answer.type === "ERROR") return this.#failed(answer);
      line.token = token;
      this.access = accessOf(/** @type {Access} */ (answer));
      this.#renewal?.start(token);
    });
  }

  /**
   * The server, or a token, is waited for no longer than this.
   *
   * @param {Why} orElse
   */
  #expect(orElse) {
    this.#timer.set(() => this.#lost(orElse), CONNECT_WITHIN_MS);
  }

  /**
   * @param {number} closeCode
   * @param {string} reason
   */
  #closed(closeCode, reason) {
    const why = { code: CODES_OF_CLOSES[closeCode] ?? "DISCONNECTED", reason, closeCode };
    const hasNoOther = closeCode === TOKEN_REFUSED && this.#renewal === null;
    if (hasNoOther || afterClose(closeCode) === "refused") this.#end("refused", why);
    else this.#lost(why);
  }

  /** @param {Why} why */
  #lost(why) {
    const line = this.#line;
    if (!line) return;
    if (why.code === "MESSAGE_TOO_BIG") this.#commands.rejectLongest();
    const lastedMs = line.isOnline ? performance.now() - this.#onlineSinceMs : 0;
    // Who was sent away is expected elsewhere, also when that happens several times in a rolling restart.
    if (lastedMs > STEADY_AFTER_MS || (lastedMs > 0 && why.code === "SHUTTING_DOWN")) this.#attempt = 0;
    const retryMs = line.reconnectAfterMs ?? backoffMs(this.#attempt++);
    this.#drop();
    this.#timer.set(() => this.connect(), retryMs);
    this.#setAll("offline", { ...why, retryMs });
  }

  /**
   * @param {"refused" | "closed"} status
   * @param {Why} why
   */
  #end(status, why) {
    this.#drop();
    this.#machine.stop();
    this.#attempt = 0;
    this.#rejectCommands(why.reason ?? `Not connected: ${status}`);
    this.#setAll(status, status === "closed" ? {} : why);
  }

  /** The page is left; should it be shown again as it was, it comes back by `probe`. */
  #left() {
    if (!this.#line && this.status !== "offline") return;
    this.#drop();
    this.#setAll("offline", { code: "DISCONNECTED", reason: "The page was left" });
  }

  #jumped() {
    this.time.forget();
    if (!this.#line?.isOnline) return this.probe();
    this.#pings.measure();
    this.#setStatus("unsure");
  }

  #drop() {
    this.#timer.clear();
    this.#pings.stop();
    this.#renewal?.stop();
    this.#commands.lost();
    this.#leaving.clear();
    this.#line?.drop();
    this.#line = null;
  }

  /**
   * What has become of the connection, and so of its subscriptions, which are told after it.
   *
   * @param {"offline" | "refused" | "closed"} status
   * @param {Why & { retryMs?: number }} why
   */
  #setAll(status, why) {
    const ofFollowers = status === "offline" ? "waiting" : status;
    const changed = [...this.#followers.values()].filter((follower) => follower.lost(ofFollowers));
    if (status === "closed") this.#followers.clear(); // now, for who is told of it may follow anew
    this.#setStatus(status, why);
    for (const follower of changed) follower.tell(ofFollowers, why.code, why.reason);
  }

  /**
   * @param {LinkStatus} status
   * @param {Omit<LockstepEvents["status"], "status">} [why]
   */
  #setStatus(status, why) {
    this.status = status;
    this.#emit("status", { status, ...why });
  }
}
