/** Requests to a server, each made until it is answered. */

import { serverAddress } from "./address.js";
import { backoffMs } from "./backoff.js";
import { LockstepError } from "./errors.js";
import { isObject } from "./values.js";

/** @import { Token } from "./types.js" */

const LONGEST_TIMER_MS = 2 ** 31 - 1;
const MAX_BACKOFF_STEP = 2; // somebody waits for the answer: 2 s at most between two attempts

/**
 * @typedef {object} HttpOptions
 * @property {Token | undefined} [token] if the server wants one; a function is asked at each attempt
 * @property {((request: Request) => Promise<Response>) | undefined} [fetch] in place of the global one
 * @property {number | undefined} [timeoutMs] how long a call may take, with all its attempts; 10,000 unless given
 */

/** A server, asked by HTTP. What is asked has to bear being asked again, unless it `isOnce`. */
export class Http {
  #base;
  #token;
  #fetch;
  #timeoutMs;

  /**
   * @param {string | URL} url the server's address, below which /v1 is; in a document it may be relative to that
   * @param {HttpOptions} options
   */
  constructor(url, { token, fetch, timeoutMs = 10_000 }) {
    this.#base = serverAddress(url);
    this.#token = token;
    // Browsers want it called without `this`; asked for late, it may be one that a test puts there.
    this.#fetch = (/** @type {Request} */ request) => (fetch ?? globalThis.fetch)(request);
    this.#timeoutMs = Math.min(timeoutMs, LONGEST_TIMER_MS);
  }

  /**
   * @param {"GET" | "POST" | "DELETE"} method
   * @param {string} path what follows /v1/
   * @param {{ headers?: Record<string, string>, body?: unknown, signal?: AbortSignal | undefined, isOnce?: boolean
   *   }} [request]
   * @returns {Promise<Record<string, unknown> | undefined>} the answer's JSON; undefined where it has none
   */
  async send(method, path, { headers, body, signal, isOnce = false } = {}) {
    const url = new URL(`v1/${path}`, this.#base);
    const init = {
      method,
      headers: { ...headers, ...(body !== undefined && { "Content-Type": "application/json" }) },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    };
    const giveUpAtMs = performance.now() + this.#timeoutMs;
    for (let attempt = 0; ; attempt++) {
      try {
        // A line can be dead without anybody saying so: half of the time is left for another one.
        const withinMs = Math.min(isOnce ? Infinity : this.#timeoutMs / 2, giveUpAtMs - performance.now());
        return await limited(withinMs, signal, (limit) => this.#attempt(url, init, limit));
      } catch (error) {
        if (isOnce || !(error instanceof LockstepError) || !isTransient(error)) throw error;
        const waitMs = (error.retryAfterMs ?? 0) + backoffMs(Math.min(attempt, MAX_BACKOFF_STEP));
        if (performance.now() + waitMs >= giveUpAtMs) throw error;
        await limited(waitMs, signal, () => new Promise(() => {})).catch(() => signal?.throwIfAborted());
      }
    }
  }

  /**
   * @param {URL} url
   * @param {RequestInit} init
   * @param {AbortSignal} limit
   */
  async #attempt(url, init, limit) {
    const headers = new Headers(init.headers);
    const token = await this.#tokenNow();
    if (token) headers.set("Authorization", `Bearer ${token}`);
    // Followed, a redirected POST becomes a GET, whose answer would be taken for that of the change.
    const request = new Request(url, { ...init, headers, redirect: "manual", cache: "no-store", signal: limit });
    let response, text;
    try {
      response = await this.#fetch(request);
      text = await response.text();
    } catch (cause) {
      throw unreachable(cause);
    }
    return jsonOf(response, text);
  }

  async #tokenNow() {
    try {
      return typeof this.#token === "function" ? await this.#token() : this.#token;
    } catch (cause) {
      throw new LockstepError("TOKEN_UNAVAILABLE", "There is no token to ask with", { cause });
    }
  }
}

/** @param {LockstepError} error */
const isTransient = ({ code, status = 0 }) => code === "UNREACHABLE" || status === 429 || status >= 500;

/** @param {unknown} [cause] */
const unreachable = (cause) => new LockstepError("UNREACHABLE", "The server does not answer", { cause });

/**
 * @param {string} why
 * @param {{ status?: number, retryAfterMs?: number | undefined }} [more]
 */
export const invalid = (why, more) =>
  new LockstepError("INVALID_ANSWER", `This is no answer of Lockstep's: ${why}`, more);

/**
 * The JSON of an answer. Throws what any other answer than success means.
 *
 * @param {Response} response
 * @param {string} text
 */
function jsonOf(response, text) {
  const { status } = response;
  if (status === 204) return undefined;
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    answer = undefined;
  }
  if (response.ok && isObject(answer)) return answer;
  const error = answer?.error;
  const seconds = error?.retry_after_seconds ?? Number(response.headers.get("Retry-After") ?? NaN);
  const retryAfterMs = seconds >= 0 ? seconds * 1000 : undefined;
  if (!response.ok && typeof error?.code === "string") {
    throw new LockstepError(error.code, String(error.message), { details: error.details, retryAfterMs, status });
  }
  const location = response.headers.get("Location");
  throw invalid(location ? `it redirects to ${location}` : `HTTP ${status}`, { status, retryAfterMs });
}

/**
 * What `work` makes, unless `ms` are over, which is UNREACHABLE, or `signal` aborts, which throws its reason; then the
 * signal that it is given aborts.
 *
 * @template T
 * @param {number} ms
 * @param {AbortSignal | undefined} signal
 * @param {(limit: AbortSignal) => Promise<T>} work
 * @returns {Promise<T>}
 */
async function limited(ms, signal, work) {
  signal?.throwIfAborted();
  const limit = new AbortController();
  const abort = () => limit.abort(signal?.reason);
  const timer = setTimeout(() => limit.abort(unreachable()), ms);
  signal?.addEventListener("abort", abort);
  try {
    return await new Promise((resolve, reject) => {
      limit.signal.onabort = () => reject(limit.signal.reason);
      work(limit.signal).then(resolve, reject);
    });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}
