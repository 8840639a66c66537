/** What time it is at the server. */

const SAMPLES_KEPT = 8;
const JUMP_MS = 250; // some browsers round both clocks to 100 ms

/**
 * What time it is at the server, measured by questions and answers.
 *
 * Its basis is `performance.now()`: setting the local wall clock does not move it. The answer with the shortest
 * way counts, for it can be wrong by half of that at most. Old answers that a new one contradicts are
 * forgotten: the server's clock was set.
 *
 * On some platforms the monotonic clock stands still while the machine sleeps. The wall clock does not, so a jump
 * between the two makes `errorMs` infinite until something is measured anew. Somebody who sets the wall clock
 * causes the same: the two cannot be told apart, and a needless measurement costs little.
 */
export class ServerTime {
  #samples = [];
  #offsetMs;
  #wallLeadMs;

  /**
   * @param {() => number} [localMs] a monotonic clock
   * @param {() => number} [wallMs] a clock that also runs while the machine sleeps
   */
  constructor(localMs = () => performance.now(), wallMs = () => Date.now()) {
    this.localMs = localMs;
    this.wallMs = wallMs;
    this.#wallLeadMs = wallMs() - localMs();
    this.#offsetMs = this.#wallLeadMs; // the best guess until the server has said something
  }

  /** Server time in epoch ms, not rounded. */
  now() {
    return this.localMs() + this.#offsetMs;
  }

  /** The most by which `now()` can be wrong, in ms; Infinity as long as nothing was measured, and after a jump. */
  get errorMs() {
    if (this.#samples.length === 0 || this.hasJumped) return Infinity;
    return Math.min(...this.#samples.map((sample) => sample.errorMs));
  }

  /** Whether the wall clock and the monotonic one have moved apart since the last answer, or since `forget()`. */
  get hasJumped() {
    return Math.abs(this.wallMs() - this.localMs() - this.#wallLeadMs) > JUMP_MS;
  }

  /**
   * Learn from one answer.
   *
   * @param {number} sentMs local time at which the question left
   * @param {number} receivedMs local time at which the answer came
   * @param {number} timestampMs server time at which it was given
   * @param {number} [receivedAtMs] server time at which the question had come. Protocol v1 does not say it, and
   *   floors the other to the ms: server time was half a ms later on average
   * @param {number} [serverErrorMs] the most by which the server itself can be wrong
   */
  learn(sentMs, receivedMs, timestampMs, receivedAtMs, serverErrorMs = 0) {
    const leastMs = timestampMs - receivedMs;
    const mostMs = (receivedAtMs ?? timestampMs + 1) - sentMs;
    const underWayMs = receivedMs - sentMs - (receivedAtMs === undefined ? 0 : timestampMs - receivedAtMs);
    const sample = {
      offsetMs: (leastMs + mostMs) / 2,
      reachMs: (mostMs - leastMs) / 2 + serverErrorMs,
      errorMs: Math.max(0, underWayMs / 2) + serverErrorMs,
    };
    if (this.hasJumped) this.forget();
    this.#wallLeadMs = this.wallMs() - this.localMs(); // the two drift apart a little all the time
    const agrees = (old) => Math.abs(old.offsetMs - sample.offsetMs) <= old.reachMs + sample.reachMs;
    const kept = this.#samples.every(agrees) ? this.#samples.slice(1 - SAMPLES_KEPT) : [];
    this.#samples = [...kept, sample];
    this.#offsetMs = this.#samples.reduce((a, b) => (b.errorMs < a.errorMs ? b : a)).offsetMs;
  }

  /** Measure anew, as after a jump or a reconnect. `now()` goes on as before until the first answer. */
  forget() {
    this.#samples = [];
    this.#wallLeadMs = this.wallMs() - this.localMs();
  }
}
