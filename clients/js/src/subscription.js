/** One session, as an application follows it. */

import { LockstepError } from "./errors.js";
import { Follower } from "./follower.js";

/** @import { Connection } from "./connection.js" */
/** @import { ServerTime } from "./server-time.js" */
/**
 * @import { CommandBodies, CommandName, CommandOptions, Presence, Result, State, SubscriptionEvents, SubscriptionStatus,
 *   TypedEventTarget } from "./types.js"
 */

/**
 * One session, made by `Lockstep.subscribe`. `state` is always one that the server had, never a guess; whether it is known
 * to be the latest, `isCurrent` says.
 *
 * Events, each a CustomEvent with these fields in `detail`:
 *
 * - `state` {state, events, reason?, sync, timestamp}: another state. `events` led to it, each with its `data`: every one
 *   comes once and in order, except those that a state with `sync` stands for, which only the history has
 * - `missing` {}: there is no such session; should it be created, `state` follows
 * - `deleted` {}: it was deleted; should it be created anew, `state` follows
 * - `presence` {presence, joined?, left?}: who is connected has changed
 * - `message` {message}: what the application has published to the session's clients
 * - `status` {status, code?, reason?}: see `status`
 * - `error` {error}: what it asked for could not be had, or not be understood; it asks again by itself
 */
export class Subscription extends /** @type {{ new (): TypedEventTarget<SubscriptionEvents> }} */ (EventTarget) {
  #follower;
  #connection;
  #onClose;

  /**
   * `Lockstep.subscribe` makes them.
   *
   * @param {string} sessionId
   * @param {Connection} connection
   * @param {() => void} onClose
   */
  constructor(sessionId, connection, onClose) {
    super();
    this.#connection = connection;
    this.#onClose = onClose;
    this.#follower = new Follower(
      sessionId,
      (type, detail) => void this.dispatchEvent(new CustomEvent(type, { detail })),
      () => connection.pump(),
    );
  }

  /** @returns {string} in lower case, as the server has it */
  get sessionId() {
    return this.#follower.sessionId;
  }

  /** @returns {State | null} the latest state; null while there is none */
  get state() {
    return this.#follower.state;
  }

  /** @returns {string | null} the server's name of that state: to compare, and to hand back */
  get position() {
    return this.#follower.position;
  }

  /**
   * @returns {Presence | null} who is connected, where the session was created with presence, else
   *   null; offline it is what was told last
   */
  get presence() {
    return this.#follower.presence;
  }

  /**
   * "waiting": the server has not said how it stands, or the connection is lost; "current", "missing", "deleted": it has;
   * "refused": it wants none of this (FORBIDDEN, DISCONNECTED by `disconnect`, TOO_MANY_SUBSCRIPTIONS, INVALID_MESSAGE of
   * an id that is none, or what ended the connection), until `connect()`; "closed": by `close()`, for good.
   *
   * @returns {SubscriptionStatus}
   */
  get status() {
    return this.#follower.status;
  }

  /** @returns {boolean} whether `state` is known to be the latest, and the server's time is known */
  get isCurrent() {
    return this.status === "current" && this.#connection.status === "online";
  }

  /** @returns {ServerTime} what time it is at the server, which the state's clocks are drawn by */
  get time() {
    return this.#connection.time;
  }

  /**
   * Change the session, as the token allows.
   *
   * The command waits for the connection, and is sent again after a lost one. It is applied once all the same: by its key
   * the server knows it again. What must not happen late says so in its body, by `expected_version` or
   * `expected_participant_id`. The state that it leads to comes as event `state`, before or after the answer.
   *
   * @template {CommandName} Name
   * @param {Name} name
   * @param {CommandBodies[Name]} [body]
   * @param {CommandOptions} [options]
   * @returns {Promise<Result>} rejects with a LockstepError: its code is the server's, or DISCONNECTED
   *   (the connection has ended for good; what became of the command is unknown), or MESSAGE_TOO_BIG; or with the
   *   signal's reason
   */
  command(name, body, options = {}) {
    if (this.status === "closed") return Promise.reject(new LockstepError("DISCONNECTED", "Not subscribed: closed"));
    return this.#connection.command(this.sessionId, name, body, options);
  }

  /** Ask anew after `refused`, and connect what is not connected. */
  connect() {
    if (this.status === "closed") return;
    this.#follower.again();
    this.#connection.follow(this.#follower);
  }

  /** Follow it no more; the socket stays, and so do commands that were given before. */
  close() {
    if (this.status === "closed") return;
    this.#onClose();
    this.#connection.unfollow(this.#follower);
  }
}
