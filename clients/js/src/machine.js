/** The machine and the page that the connection lives on. */

/** @import { ServerTime } from "./server-time.js" */

const LOOK_EVERY_MS = 1_000;
const SLEPT_MS = 5_000; // timers of a visible page are hardly ever this late

/** Notices that the machine has slept, that its network has changed, and that the page is hidden, left or looked at again. */
export class Machine {
  /** @type {AbortController | null} */
  #watching = null;
  #seenMs = 0;
  #time;
  #onJump;
  #onWake;
  #onLeave;

  /**
   * @param {ServerTime} time
   * @param {() => void} onJump the machine has slept, or its clock was set
   * @param {() => void} onWake something may have changed, so that a question is due
   * @param {() => void} onLeave the page is left
   */
  constructor(time, onJump, onWake, onLeave) {
    this.#time = time;
    this.#onJump = onJump;
    this.#onWake = onWake;
    this.#onLeave = onLeave;
  }

  /**
   * Has it slept? Where the monotonic clock stood still meanwhile, it and the wall clock have moved apart; where it ran
   * on, a timer is late.
   */
  look() {
    const nowMs = this.#time.localMs();
    // The timers of a hidden page come seldom.
    const isLate = nowMs - this.#seenMs > SLEPT_MS && !globalThis.document?.hidden;
    this.#seenMs = nowMs;
    if (isLate || this.#time.hasJumped) this.#onJump();
  }

  watch() {
    if (this.#watching) return;
    this.#watching = new AbortController();
    this.#seenMs = this.#time.localMs();
    const { signal } = this.#watching;
    const looking = setInterval(() => this.look(), LOOK_EVERY_MS);
    signal.addEventListener("abort", () => clearInterval(looking));
    const onShown = () => {
      this.#seenMs = this.#time.localMs(); // late timers of a hidden page say nothing
      if (globalThis.document?.hidden) return;
      this.look();
      this.#onWake();
    };
    const { document, addEventListener } = globalThis; // Node has neither
    for (const type of ["online", "offline"]) addEventListener?.(type, this.#onWake, { signal });
    // A page that is left may be kept and shown again; not everywhere with a connection that is open.
    addEventListener?.("pagehide", this.#onLeave, { signal });
    addEventListener?.("pageshow", onShown, { signal });
    document?.addEventListener("visibilitychange", onShown, { signal });
  }

  stop() {
    this.#watching?.abort();
    this.#watching = null;
  }
}
