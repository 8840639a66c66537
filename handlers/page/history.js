/** What a state does not carry, because it is history: it is fetched when it is another than was fetched last. */

import { eventsUpTo } from "./api.js";

const EVENTS_ASKED = 900; // the server keeps 1,000, and may make more before it answers
const AGAIN_MS = 1000;
const AGAIN_MAX_MS = 30_000;

export class History {
  #draw;
  #drawn; // what is drawn, or will be once it is fetched
  #asking = new AbortController();
  #timer;

  /** @param {(events: object[], state: object) => void} draw */
  constructor(draw) {
    this.#draw = draw;
  }

  /** Draw the events up to `state`, unless what is `wanted` of them has been asked for. */
  show(wanted, state) {
    if (this.#drawn === wanted) return;
    this.#drawn = wanted;
    this.#fetch(state, AGAIN_MS);
  }

  /** What was asked for is not drawn any more, nor asked for again. */
  forget() {
    clearTimeout(this.#timer);
    this.#asking.abort();
    this.#drawn = undefined;
  }

  /** Repeat until it succeeds: this state may be the last one, so no later one might ask again. */
  async #fetch(state, againMs) {
    clearTimeout(this.#timer);
    this.#asking.abort();
    const { signal } = (this.#asking = new AbortController());
    const events = await eventsUpTo(state, EVENTS_ASKED, signal).catch(() => null);
    if (signal.aborted) return;
    if (events) return this.#draw(events, state);
    // At random, because everybody who watches may have been refused at once.
    const waitMs = againMs * (1 + Math.random());
    this.#timer = setTimeout(() => this.#fetch(state, Math.min(2 * againMs, AGAIN_MAX_MS)), waitMs);
  }
}
