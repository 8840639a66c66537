/** Questions for the time, which also show whether the line is alive. */

import { Timer } from "./timer.js";

/** @import { Pong } from "./messages.js" */
/** @import { ServerTime } from "./server-time.js" */

const PING_EVERY_MS = 5_000;
const PONG_WITHIN_MS = 4_000;
const BURST = 5; // in quick succession after each connect: one of them will meet no queue
const BURST_PAUSE_MS = 60;

/** One is under way at most. A dead line closes nothing: it may take minutes to be noticed, so silence is taken for the end. */
export class Pings {
  #timer = new Timer();
  #lastId = 0;
  #sentMs = 0;
  #isDue = false;
  #burst = 0;
  #time;
  #send;
  #onSilence;

  /**
   * @param {ServerTime} time which learns from the answers
   * @param {(text: string) => void} send
   * @param {() => void} onSilence
   */
  constructor(time, send, onSilence) {
    this.#time = time;
    this.#send = send;
    this.#onSilence = onSilence;
  }

  /** Ask several times; what was asked before needs no answer any more. */
  measure() {
    this.#burst = BURST;
    this.#isDue = false;
    this.ping();
  }

  ping() {
    if (this.#isDue) return;
    this.#isDue = true;
    this.#sentMs = this.#time.localMs();
    this.#timer.set(this.#onSilence, PONG_WITHIN_MS);
    this.#lastId += 1;
    this.#send(JSON.stringify({ type: "PING", id: this.#id }));
  }

  /**
   * @param {Pong} pong
   * @returns {boolean} whether it was asked for
   */
  receive({ id, timestamp, receivedAt, errorMs, standsStill }) {
    const receivedMs = this.#time.localMs();
    if (standsStill) this.#time.stand(Math.floor(timestamp));
    if (!this.#isDue || id !== this.#id) return false;
    this.#isDue = false;
    // null: it does not know.
    if (!standsStill) this.#time.learn(this.#sentMs, receivedMs, timestamp, receivedAt, errorMs ?? Infinity);
    this.#burst -= 1;
    this.#timer.set(() => this.ping(), this.#burst > 0 ? BURST_PAUSE_MS : PING_EVERY_MS);
    return true;
  }

  /** None that a request has. */
  get #id() {
    return `ping-${this.#lastId}`;
  }

  stop() {
    this.#timer.clear();
    this.#isDue = false;
  }
}
