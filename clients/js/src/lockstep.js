/** One server: one socket for all sessions that are followed and changed. */

import { serverAddress } from "./address.js";
import { Connection } from "./connection.js";
import { Subscription } from "./subscription.js";
import { isToken, NO_TOKEN } from "./tokens.js";

/** @import { ServerTime } from "./server-time.js" */
/** @import { Access, LinkStatus, LockstepEvents, Token, TypedEventTarget, WebSocketClass } from "./types.js" */

/**
 * One server, by one WebSocket (protocol v2).
 *
 * It connects, subscribes, measures the server's time, notices when the line is dead though nothing has said so, and comes
 * back: with what was missed, or with the state as it is then. Nothing that a listener or a token function does or throws
 * keeps it from coming back, `close()` apart.
 *
 * Events, each a CustomEvent with these fields in `detail`:
 *
 * - `status` {status, code?, reason?, closeCode?, error?, retryMs?}: see `status`
 * - `error` {error}: the server said what is no message, or could not do something that is about no session
 */
export class Lockstep extends /** @type {{ new (): TypedEventTarget<LockstepEvents> }} */ (EventTarget) {
  #connection;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();

  /**
   * @param {string | URL} url the server's address (`https://clocks.example.org/`), also as ws:, or relative to the
   *   document; `ws` is below it
   * @param {{ token?: Token | undefined, WebSocket?: WebSocketClass | undefined }}
   *   [options] a token where the server wants one. A function is asked anew for each connection, and shortly before the
   *   token that it gave runs out; one that throws, or has not answered after 10 s, has cost an attempt, no more. A string
   *   that was refused is refused for good. `WebSocket` where there is none of its own, as in Node 20
   * @throws {TypeError} where an address, a token or a WebSocket cannot be one
   */
  constructor(url, { token, WebSocket = globalThis.WebSocket } = {}) {
    super();
    if (typeof token !== "function" && !isToken(token)) {
      throw new TypeError(NO_TOKEN);
    }
    if (!WebSocket) throw new TypeError("There is no WebSocket: hand one in");
    const address = new URL("ws", serverAddress(url));
    address.protocol = address.protocol.replace("http", "ws");
    this.#connection = new Connection(
      address.href,
      token,
      WebSocket,
      (type, detail) => void this.dispatchEvent(new CustomEvent(type, { detail })),
    );
  }

  /**
   * "connecting" at first, "online", "offline" (and coming back); "unsure": connected, but the machine has slept or its
   * clock was set, and the server's time is being measured anew. Until `connect()`: "refused" (the server wants no more of
   * this: the token, or UNSUPPORTED_PROTOCOL where it does not speak protocol v2), "closed" (by `close()`).
   *
   * @returns {LinkStatus}
   */
  get status() {
    return this.#connection.status;
  }

  /** @returns {ServerTime} what time it is at the server */
  get time() {
    return this.#connection.time;
  }

  /** @returns {Access | null} what the server lets this connection do; null before it has said so */
  get access() {
    return this.#connection.access;
  }

  /** @returns {Subscription[]} those that are open */
  get subscriptions() {
    return [...this.#subscriptions.values()];
  }

  /** Connect, and stay connected until `close()` or until the server ends it for good. */
  connect() {
    this.#connection.connect();
  }

  /** Leave: all subscriptions are closed, and no timer and no listener is left. */
  close() {
    this.#subscriptions.clear();
    this.#connection.close();
  }

  /** Find out now whether the connection still stands; when waiting to come back, come back now. */
  probe() {
    this.#connection.probe();
  }

  /**
   * Follow a session, and connect if that has not been done.
   *
   * @param {string} sessionId
   * @returns {Subscription} the same one for the same session, until it is closed
   */
  subscribe(sessionId) {
    const id = String(sessionId).toLowerCase();
    let subscription = this.#subscriptions.get(id);
    if (!subscription) {
      subscription = new Subscription(id, this.#connection, () => this.#subscriptions.delete(id));
      this.#subscriptions.set(id, subscription);
      subscription.connect();
    }
    return subscription;
  }
}
