/** Tokens, and exchanging one before it has run out. */

import { Timer } from "./timer.js";

const RENEW_BEFORE_MS = 60_000; // a token is exchanged about so long before it runs out
const LONGEST_TIMER_MS = 2 ** 31 - 1;

export const NO_TOKEN = "The token is no JWT";

/**
 * @param {unknown} token
 * @returns {boolean} whether it can be handed over as a subprotocol; none can, too
 */
export const isToken = (token) => token == null || (typeof token === "string" && /^[\w.-]*$/.test(token));

/**
 * @param {string} token
 * @returns {number} when it runs out, in epoch ms; NaN where it does not, or is not to be read
 */
function expiryMs(token) {
  try {
    const [, claims = ""] = token.split(".");
    const { exp } = JSON.parse(atob(claims.replaceAll("-", "+").replaceAll("_", "/")));
    return Number.isFinite(exp) ? exp * 1000 : NaN;
  } catch {
    return NaN;
  }
}

/** Asks for the next token before the present one has run out. */
export class Renewal {
  #timer = new Timer();
  #token = "";
  #ask;
  #nowMs;
  #exchange;

  /**
   * @param {() => string | Promise<string>} ask
   * @param {() => number} nowMs
   * @param {(token: string) => void} exchange what is done with another token
   */
  constructor(ask, nowMs, exchange) {
    this.#ask = ask;
    this.#nowMs = nowMs;
    this.#exchange = exchange;
  }

  /**
   * @param {string} token the one by which the connection is open
   * @param {number} [nowMs] server time
   */
  start(token, nowMs = this.#nowMs()) {
    this.#token = token;
    this.#wait(expiryMs(token) - nowMs);
  }

  stop() {
    this.#timer.clear();
    this.#token = "";
  }

  /**
   * At an instant that not everybody chooses.
   *
   * @param {number} lastsMs
   */
  #wait(lastsMs) {
    this.#timer.clear();
    if (!(lastsMs > 0)) return;
    const waitMs = lastsMs - Math.min(RENEW_BEFORE_MS, lastsMs / 2) * (1 - Math.random() / 4);
    this.#timer.set(() => void this.#renew(), Math.min(Math.max(waitMs, 1_000), LONGEST_TIMER_MS));
  }

  /** One that is not to be had, or no other than before, costs nothing: the present one lasts for a while. */
  async #renew() {
    const present = this.#token;
    const leftMs = expiryMs(present) - this.#nowMs();
    this.#wait(leftMs);
    if (leftMs > 2 * RENEW_BEFORE_MS) return; // the timer was as long as one can be
    let token;
    try {
      token = await this.#ask();
    } catch {
      return;
    }
    if (present !== this.#token || !token || token === present || !isToken(token)) return;
    this.#exchange(token);
  }
}
