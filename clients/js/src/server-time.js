/** What time it is at the server, and how far that may be off. */

/**
 * By how much the server's time and this machine's clock move apart at most, in ms per ms: the server's gains or loses
 * up to 1 ms a second while it follows a clock that was set, and this machine's up to half a ms while NTP slews it.
 */
const MAX_DRIFT = 1_500e-6;
/** The same where nobody slews anything: quartz on both sides, each within 100 ppm. */
const USUAL_DRIFT = 200e-6;
/** By how much what is shown is corrected, in ms per ms: less than 1, so that it never goes back. */
const SLEW_RATE = 0.5;
/** By more than this only a sleep, or somebody who sets a clock, moves wall and monotonic clock apart. */
const JUMP_MS = 250;
const WALL_RESOLUTION_MS = 1;
/** By how much the server floors instants, and sums of floats of this size are rounded. */
const ROUNDING_MS = 0.002;
/** With privacy settings browsers round their clocks to so much. */
const COARSEST_MS = 100;
const READINGS_OF_A_FINE_CLOCK = 50_000; // within them one of whole ms has moved

/**
 * Of offsets, server time less local time, in ms; empty where `low` is not below `high`.
 *
 * @typedef {{ low: number, high: number }} Interval
 */

/** @type {Interval} */
const ANYTHING = { low: -Infinity, high: Infinity };
/** @type {Interval} An answer of a clock that runs contradicts it. */
const NO_CLOCK = { low: 0, high: 0 };

/** @type {(interval: Interval, byMs: number) => Interval} */
const widened = ({ low, high }, byMs) => ({ low: low - byMs, high: high + byMs });

/** @type {(one: Interval, other: Interval) => Interval} */
const common = (one, other) => ({ low: Math.max(one.low, other.low), high: Math.min(one.high, other.high) });

/** @type {(interval: Interval) => boolean} also where an end is no number */
const isEmpty = ({ low, high }) => !(low <= high);

/**
 * What a clock is rounded to, as far as that shows soon; the coarsest there is where it does not move.
 *
 * @param {() => number} clock
 */
function resolutionOf(clock) {
  const first = clock();
  for (let i = 0; i < READINGS_OF_A_FINE_CLOCK; i++) {
    const next = clock();
    if (next > first) return Math.min(COARSEST_MS, next - first);
  }
  return COARSEST_MS;
}

/**
 * What time it is at the server, measured by questions and answers.
 *
 * Its basis is `performance.now()`: setting the wall clock does not move it. The server answered between the instants
 * at which the question left and the answer came. So the offset of its clock lies in an interval, wider by what the
 * server says of its own error. What was learned so far is such an interval too: it widens with its age, as clocks
 * drift, and each answer narrows it. What is shown is slewed towards the middle of what is likely, an interval in which
 * clocks drift as they usually do; `errorMs` reaches to the farthest end of what is possible, so it counts everything:
 * the way, the age, the server's error, what is still to be slewed, and how coarse the local clock is.
 *
 * What is shown never goes back, except at an answer that contradicts what was known (the server's clock was set), and
 * at the first answer after a jump or `forget()`.
 *
 * On some platforms the monotonic clock stands still while the machine sleeps. The wall clock does not, so a jump
 * between the two makes `errorMs` infinite until something is measured anew. Somebody who sets the wall clock causes
 * the same: the two cannot be told apart, and a needless measurement costs little.
 */
export class ServerTime {
  #clockMs;
  #wallMs;
  #resolutionMs;
  #isResolutionObserved;
  #readMs = -Infinity;
  #possible = ANYTHING;
  #likely = ANYTHING;
  #learnedAtMs;
  #forgottenAtMs = -Infinity;
  #shownFromMs;
  #shownAtMs;
  #toSlewMs = 0;
  #wallLeadMs;
  /** @type {number | undefined} */
  #standsAtMs;

  /**
   * @param {() => number} [localMs] a monotonic clock
   * @param {() => number} [wallMs] a clock that runs on while the machine sleeps
   * @param {number} [resolutionMs] what the monotonic clock is rounded to, up or down; observed where it is not given
   */
  constructor(localMs = () => performance.now(), wallMs = () => Date.now(), resolutionMs) {
    this.#clockMs = localMs;
    this.#wallMs = wallMs;
    this.#resolutionMs = resolutionMs ?? resolutionOf(localMs);
    this.#isResolutionObserved = resolutionMs === undefined;
    this.#learnedAtMs = this.#shownAtMs = this.localMs();
    this.#shownFromMs = wallMs(); // the best guess until the server has said something
    this.#wallLeadMs = this.#shownFromMs - this.#shownAtMs;
  }

  /** The monotonic clock, in ms. */
  localMs() {
    const nowMs = this.#clockMs();
    if (this.#isResolutionObserved && nowMs > this.#readMs) {
      // Different readings are one unit apart at least.
      this.#resolutionMs = Math.min(this.#resolutionMs, nowMs - this.#readMs);
      this.#readMs = nowMs;
    }
    return nowMs;
  }

  /** Server time in epoch ms, not rounded. */
  now() {
    return this.#standsAtMs ?? this.#shownMs(this.localMs());
  }

  /** The most by which `now()` can be wrong, in ms; Infinity until it is measured, and after a jump. */
  get errorMs() {
    const localMs = this.localMs();
    if (this.#apartMs(localMs) > JUMP_MS) return Infinity;
    if (this.#standsAtMs !== undefined) return this.#possible === ANYTHING ? Infinity : 0;
    const { low, high } = widened(this.#possible, this.#uncertaintyMs(localMs, MAX_DRIFT));
    const offsetMs = this.#shownMs(localMs) - localMs;
    return Math.max(high - offsetMs, offsetMs - low) + this.#readingErrorMs;
  }

  /** Whether wall and monotonic clock have moved apart since the last answer, or since `forget()`. */
  get hasJumped() {
    return this.#apartMs(this.localMs()) > JUMP_MS;
  }

  /**
   * Learn from an answer that has just come. One asked for before a jump or `forget()` is not believed.
   *
   * @param {number} sentMs local time at which the question left
   * @param {number} receivedMs local time at which the answer came
   * @param {number} timestampMs server time at which it was given
   * @param {number} [receivedAtMs] server time at which the question had come; without it, the other is all that is
   *   known, floored to the ms, as in /v1/time
   * @param {number} [serverErrorMs] the most by which the server itself can be wrong; Infinity where it does not know
   */
  learn(sentMs, receivedMs, timestampMs, receivedAtMs = timestampMs + 1, serverErrorMs = 0) {
    if (this.hasJumped) this.forget();
    if (sentMs < this.#forgottenAtMs) return;
    this.#standsAtMs = undefined;
    const offsets = { low: timestampMs - receivedMs, high: receivedAtMs - sentMs };
    const answer = widened(offsets, this.#readingErrorMs + this.#sleptMs(receivedMs));
    // Clocks drifted also while the question and the answer were on their way.
    const possible = widened(answer, serverErrorMs + (receivedMs - sentMs) * MAX_DRIFT);
    if (isEmpty(possible)) return; // which no server says
    let known = common(widened(this.#possible, this.#uncertaintyMs(receivedMs, MAX_DRIFT)), possible);
    let likely = common(widened(this.#likely, this.#uncertaintyMs(receivedMs, USUAL_DRIFT)), answer);
    const isStep = isEmpty(known) || this.#possible.low === -Infinity;
    if (isEmpty(known)) {
      known = possible;
      likely = answer;
    } else if (isEmpty(likely)) {
      likely = common(answer, known);
    }
    this.#possible = known;
    this.#likely = likely;
    this.#learnedAtMs = receivedMs;
    const middle = likely.low + (likely.high - likely.low) / 2;
    this.#show(Math.max(known.low, Math.min(known.high, middle)), isStep);
  }

  /**
   * The server's time stands still, at this instant, until it says otherwise: only a test moves it.
   *
   * @param {number} timestampMs
   */
  stand(timestampMs) {
    this.#standsAtMs = timestampMs;
    this.#possible = this.#likely = NO_CLOCK;
    this.#wallLeadMs = this.#wallMs() - this.localMs();
  }

  /**
   * Measure anew, as after a sleep. `now()` goes on as before until the first answer. A new connection is no reason
   * to: what was known remains true.
   */
  forget() {
    this.#possible = this.#likely = ANYTHING;
    this.#forgottenAtMs = this.localMs();
    this.#wallLeadMs = this.#wallMs() - this.#forgottenAtMs;
  }

  /**
   * Show this offset from now on, or go there.
   *
   * @param {number} offsetMs
   * @param {boolean} isStep
   */
  #show(offsetMs, isStep) {
    const localMs = this.localMs();
    this.#wallLeadMs = this.#wallMs() - localMs;
    this.#shownFromMs = isStep ? localMs + offsetMs : this.#shownMs(localMs);
    this.#shownAtMs = localMs;
    this.#toSlewMs = offsetMs - (this.#shownFromMs - localMs);
  }

  /**
   * The sum is made in this order so that no rounding lets it go back.
   *
   * @param {number} localMs
   */
  #shownMs(localMs) {
    const sinceMs = Math.max(0, localMs - this.#shownAtMs);
    const mostMs = sinceMs * SLEW_RATE;
    return this.#shownFromMs + (sinceMs + Math.max(-mostMs, Math.min(mostMs, this.#toSlewMs)));
  }

  get #readingErrorMs() {
    return this.#resolutionMs + ROUNDING_MS;
  }

  /**
   * By how much what was learned may have changed since, in either direction.
   *
   * @param {number} localMs
   * @param {number} drift
   */
  #uncertaintyMs(localMs, drift) {
    return Math.max(0, localMs - this.#learnedAtMs) * drift + this.#sleptMs(localMs);
  }

  /**
   * For how long this clock may have stood still since the last answer, where that is no jump yet.
   *
   * @param {number} localMs
   */
  #sleptMs(localMs) {
    const apartMs = this.#apartMs(localMs);
    const roundedMs = 2 * (WALL_RESOLUTION_MS + this.#readingErrorMs);
    return apartMs > roundedMs ? apartMs + roundedMs : 0;
  }

  /**
   * How far the wall clock and the monotonic one have moved apart since the last answer.
   *
   * @param {number} localMs
   */
  #apartMs(localMs) {
    return Math.abs(this.#wallMs() - localMs - this.#wallLeadMs);
  }
}
