/** Commands that have no answer yet. */

import { backoffMs } from "./backoff.js";
import { LockstepError } from "./errors.js";
import { errorOf } from "./messages.js";
import { Timer } from "./timer.js";
import { randomKey } from "./values.js";

/** @import { Answer } from "./messages.js" */
/** @import { Requests } from "./requests.js" */
/** @import { CommandOptions, Result } from "./types.js" */
/**
 * @typedef {object} Command
 * @property {string} sessionId
 * @property {string} text
 * @property {boolean} isUnderWay
 * @property {Timer} timer runs until it is sent again
 * @property {(result: Result) => void} resolve
 * @property {(reason: unknown) => void} reject
 * @property {() => void} forget
 */

// The server could not, for reasons of its own; another time it can.
const TRIED_AGAIN = ["BROKER_UNAVAILABLE", "SESSION_BUSY", "RECEIVED_TOO_LONG_AGO", "SHUTTING_DOWN"];

/**
 * They are sent in the order in which they were given. One that is to be sent again later holds up those of its session
 * that are behind it, and one that was under way on a lost connection is sent on the next: by its key the server knows it
 * again.
 */
export class Commands {
  /** @type {Set<Command>} */
  #commands = new Set();
  #onReady;

  /** @param {() => void} onReady called when there is something to send */
  constructor(onReady) {
    this.#onReady = onReady;
  }

  /**
   * @param {string} sessionId
   * @param {string} name
   * @param {object | undefined} body
   * @param {CommandOptions} options
   * @returns {Promise<Result>}
   */
  give(sessionId, name, body, { idempotencyKey = randomKey(), signal }) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const text = JSON.stringify({ type: "COMMAND", sessionId, command: name, body, idempotencyKey });
      const onAbort = () => this.#settle(command, () => reject(signal?.reason));
      const forget = () => signal?.removeEventListener("abort", onAbort);
      /** @type {Command} */
      const command = { sessionId, text, isUnderWay: false, timer: new Timer(), resolve, reject, forget };
      signal?.addEventListener("abort", onAbort);
      this.#commands.add(command);
      this.#onReady();
    });
  }

  /**
   * Send those whose turn it is.
   *
   * @param {Requests} requests
   */
  send(requests) {
    const held = new Set();
    for (const command of this.#commands) {
      if (!requests.hasRoom) return;
      if (command.timer.isSet) held.add(command.sessionId);
      if (command.isUnderWay || held.has(command.sessionId)) continue;
      command.isUnderWay = true;
      requests.send(command.text, (answer) => this.#answered(command, answer));
    }
  }

  /** The connection is lost: the next one sends them. */
  lost() {
    for (const command of this.#commands) {
      command.timer.clear();
      command.isUnderWay = false;
    }
  }

  /** @param {LockstepError} error */
  rejectAll(error) {
    for (const command of [...this.#commands]) this.#settle(command, () => command.reject(error));
  }

  /** Of those under way one was too big for the server, which says so by ending the connection. */
  rejectLongest() {
    const underWay = [...this.#commands].filter(({ isUnderWay }) => isUnderWay);
    const [longest] = underWay.sort((one, other) => other.text.length - one.text.length);
    const error = new LockstepError("MESSAGE_TOO_BIG", "Too long for a message: send it by REST");
    if (longest) this.#settle(longest, () => longest.reject(error));
  }

  /**
   * @param {Command} command
   * @param {Answer} answer
   */
  #answered(command, answer) {
    command.isUnderWay = false;
    if (answer.type === "RESULT") {
      const { type, id, sessionId, ...result } = answer;
      return this.#settle(command, () => command.resolve(result));
    }
    const error = errorOf(answer);
    if (!TRIED_AGAIN.includes(error.code)) this.#settle(command, () => command.reject(error));
    else if (this.#commands.has(command)) {
      command.timer.set(this.#onReady, (error.retryAfterMs ?? 0) + backoffMs(1));
    }
  }

  /**
   * @param {Command} command
   * @param {() => void} settle what becomes of it, unless that has been decided
   */
  #settle(command, settle) {
    if (!this.#commands.delete(command)) return;
    command.timer.clear();
    command.forget();
    settle();
  }
}
