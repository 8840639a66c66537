/**
 * Sessions created, changed and read over REST, as an application's back end does.
 *
 * @module lockstep-client/rest
 */

import { Http, invalid } from "./http.js";
import { isObject, randomKey } from "./values.js";

export { LockstepError } from "./errors.js";

/** @import { CommandBodies, CommandName, HistoryEvent, Message, NewSession, Participant } from "./types.js" */
/** @import { Presence, SessionStatus, State } from "./types.js" */

const MAX_PAGE = 100;

/** @typedef {import("./http.js").HttpOptions} HttpOptions */

/**
 * @typedef {object} ReadOptions
 * @property {AbortSignal | undefined} [signal] ends the call, which throws the signal's reason
 *
 * @typedef {object} ChangeOptions
 * @property {AbortSignal | undefined} [signal] ends the call, which throws the signal's reason; the change may have
 *   been made all the same
 * @property {string | undefined} [idempotencyKey] 1 to 255 printable ASCII characters, kept by the server for a day:
 *   the change is made once, however often it is asked for with the same key. Each call has one of its own unless it
 *   is given, so this is for an application that asks again itself, after a restart for instance
 * @property {string | State | undefined} [ifMatch] a position, or the state that is meant: the change is made only
 *   if the session is still there; else it throws CONFLICT
 */

/**
 * What a switch is answered: that much of the state, `lap_ms` where it ended a lap, and whose turn it ended, where that
 * one's clock had run out.
 *
 * @typedef {Pick<State, "session_id" | "active_participant_id" | "cycle_started_at" | "status" | "version"> & {
 *   participants: Participant[], lap_ms?: number, expired_participant_id?: string }} SwitchAnswer
 *
 * @typedef {{ timestamp_ms: number, server_version: string, drift_tolerance_ms: number }} TimeAnswer epoch ms, and how
 *   far screens may be apart
 */

/**
 * A server's REST API.
 *
 * A call that is not answered, or with 429 or 5xx, is made again after a while, or after as long as the server says,
 * until `timeoutMs` are over. Each change carries an idempotency key, so that it is made once all the same. What is not
 * answered with success throws a LockstepError: with the server's code, or UNREACHABLE (nobody answered; a change may
 * have been made), INVALID_ANSWER (what answered was not Lockstep: a proxy, a page to log in at) or TOKEN_UNAVAILABLE
 * (a token function threw `cause`). What cannot be sent is a TypeError.
 */
export class LockstepRest {
  #http;

  /**
   * @param {string | URL} url the server's address, below which /v1 is; in a document it may be relative to that
   * @param {HttpOptions} [options]
   */
  constructor(url, options = {}) {
    this.#http = new Http(url, options);
  }

  /**
   * @param {NewSession} body
   * @param {ChangeOptions} [options]
   * @returns {Promise<State>}
   */
  create(body, options) {
    return this.#change("POST", "sessions", body, options);
  }

  /**
   * The session as it is now: what fell due has happened.
   *
   * @param {string} id
   * @param {ReadOptions} [options]
   * @returns {Promise<State>}
   */
  get(id, options) {
    return this.#read(pathOf(id), options);
  }

  /**
   * All sessions, as they were stored last: what fell due may not have happened yet.
   *
   * @param {{ status?: SessionStatus | undefined, limit?: number | undefined } & ReadOptions} [options] only those with
   *   this status; so many at most
   * @returns {AsyncGenerator<State, void, undefined>}
   */
  async *list({ status, limit = Infinity, ...options } = {}) {
    const query = new URLSearchParams(status && { status });
    for (let left = limit; left > 0; ) {
      query.set("limit", String(Math.min(left, MAX_PAGE)));
      const { sessions, next_cursor } = await this.#read(`sessions?${query}`, options);
      const goesOn = next_cursor !== null;
      const isEndless = goesOn && next_cursor === query.get("cursor");
      if (!Array.isArray(sessions) || isEndless) throw invalid("it is no page of a list");
      yield* sessions.slice(0, left);
      left -= sessions.length;
      if (!goesOn) return;
      query.set("cursor", next_cursor);
    }
  }

  /**
   * @template {CommandName} Name
   * @param {string} id
   * @param {Name} name
   * @param {CommandBodies[Name]} [body] what the command says, if it says anything
   * @param {ChangeOptions} [options]
   * @returns {Promise<Name extends "switch" ? SwitchAnswer : State>}
   */
  command(id, name, body, options) {
    return this.#change("POST", pathOf(id, name), body, options);
  }

  /**
   * What happened in a session, in order: each version once, from the one after `since`. The last 1,000 are kept; where
   * older ones are asked for, or those of an epoch that has ended, it throws EVENTS_GONE.
   *
   * @param {string} id
   * @param {{ since?: number | undefined, epoch?: string | undefined } & ReadOptions} [options]
   * @returns {AsyncGenerator<HistoryEvent, void, undefined>}
   */
  async *events(id, { since = 0, epoch, ...options } = {}) {
    const query = new URLSearchParams(epoch && { epoch });
    for (let from = since; ; ) {
      query.set("since", String(from));
      const page = await this.#read(`${pathOf(id, "events")}?${query}`, options);
      const goesOn = page.next_since !== null;
      const isEndless = goesOn && !(page.next_since > from);
      if (!Array.isArray(page.events) || isEndless) throw invalid("it is no page of events");
      yield* page.events;
      if (!goesOn) return;
      query.set("epoch", page.epoch);
      from = page.next_since;
    }
  }

  /**
   * Tell all who follow the session something of the application's own.
   *
   * @param {string} id
   * @param {Message} message an object with a `type` that is none of the server's, at most 64 KiB
   * @param {ChangeOptions} [options]
   * @returns {Promise<void>}
   */
  async message(id, message, options) {
    await this.#change("POST", pathOf(id, "messages"), message, options);
  }

  /**
   * Who follows a session that was created with presence.
   *
   * @param {string} id
   * @param {ReadOptions} [options]
   * @returns {Promise<Presence>}
   */
  presence(id, options) {
    return this.#read(pathOf(id, "presence"), options);
  }

  /**
   * End a subject's connections to the session; with a token that is good it may come back.
   *
   * @param {string} id
   * @param {string} subject the `sub` of its token
   * @param {ChangeOptions} [options]
   * @returns {Promise<void>}
   */
  async disconnect(id, subject, options) {
    await this.#change("POST", pathOf(id, "disconnect"), { subject }, options);
  }

  /**
   * Delete the session, if there is one.
   *
   * @param {string} id
   * @param {ChangeOptions} [options]
   * @returns {Promise<void>}
   */
  async delete(id, options) {
    await this.#change("DELETE", pathOf(id), undefined, options);
  }

  /**
   * What time it is at the server.
   *
   * @param {ReadOptions} [options]
   * @returns {Promise<TimeAnswer>}
   */
  async time(options) {
    const answer = await this.#http.send("GET", "time", options);
    if (!Number.isFinite(answer?.timestamp_ms)) throw invalid("it has no time");
    return /** @type {TimeAnswer} */ (answer);
  }

  /**
   * @param {string} path
   * @param {ReadOptions} [options]
   */
  async #read(path, options) {
    return dataOf(await this.#http.send("GET", path, options));
  }

  /**
   * @param {"POST" | "DELETE"} method
   * @param {string} path
   * @param {unknown} body
   * @param {ChangeOptions} [options]
   */
  async #change(method, path, body, { idempotencyKey = randomKey(), ifMatch, signal } = {}) {
    /** @type {Record<string, string>} */
    const headers = { "Idempotency-Key": idempotencyKey };
    if (ifMatch !== undefined) headers["If-Match"] = tagOf(ifMatch);
    const answer = await this.#http.send(method, path, { headers, body, signal });
    return answer && dataOf(answer);
  }
}

/**
 * @param {string} id
 * @param {string} [rest]
 */
const pathOf = (id, rest) => `sessions/${encodeURIComponent(id)}${rest ? `/${encodeURIComponent(rest)}` : ""}`;

/** @param {string | State} meant */
const tagOf = (meant) =>
  `"${typeof meant === "string" ? meant : `${meant.epoch}-${meant.version}-${meant.commit}`}"`;

/** @param {Record<string, any> | undefined} answer */
function dataOf(answer) {
  if (!isObject(answer?.data)) throw invalid("it has no data");
  return /** @type {any} */ (answer.data);
}
