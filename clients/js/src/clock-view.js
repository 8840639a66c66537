/** What clocks show, from frame to frame. */

import { currentLap, formatClock, overMs, remainingMs, sessionClock, usedMs } from "./clocks.js";

/** @import { Subscription } from "./subscription.js" */
/** @import { State } from "./types.js" */

/**
 * @typedef {object} ClockOptions
 * @property {string | null | undefined} [participantId] whose clock; without one the session's, which is the one that
 *   runs, or stands still while pending or paused
 * @property {"time" | "used" | "lap" | "over" | undefined} [shows] "time" is what is left, in count_up what has passed;
 *   "used" what turns have taken, the one that goes on included (without a participant those of all); "lap" the lap that
 *   is being run, in count_up; "over" for how long the clock that runs has been over while the turn goes on
 * @property {number | undefined} [decimals] digits after the point, 0 by default
 * @property {number | undefined} [decimalsBelowMs] only below this; always by default
 */

/**
 * What a clock shows.
 *
 * @typedef {object} ClockFace
 * @property {string} text such as "4:59"; empty where there is nothing to show
 * @property {number | null} ms what the text says: rounded to what it shows
 * @property {boolean} isRunning whether it moves
 * @property {boolean} isOver whether it counts down and nothing is left
 */

/** @type {ClockFace} */
export const NO_FACE = { text: "", ms: null, isRunning: false, isOver: false };

/**
 * @param {State} state
 * @param {ClockOptions} options
 * @param {number} nowMs
 * @returns {number | null}
 */
function clockMs(state, { participantId, shows }, nowMs) {
  const { participants } = state;
  const participant = participants.find(({ participant_id }) => participant_id === participantId) ?? null;
  const isOfAll = participantId === undefined || participantId === null;
  if (!isOfAll && !participant) return null; // who has left
  switch (shows) {
    case "used":
      return (participant ? [participant] : participants).reduce((sum, each) => sum + usedMs(state, each, nowMs), 0);
    case "lap":
      return currentLap(state, nowMs)?.ms ?? null;
    case "over":
      return participant && !participant.is_active ? 0 : overMs(state, nowMs);
    default:
      if (participant) return remainingMs(state, participant, nowMs);
      return sessionClock(state, nowMs)?.ms ?? (state.status === "expired" ? (state.max_time_ms ?? 0) : null);
  }
}

/**
 * What is shown, and for how long it is the same at least if nothing happens: no clock is quicker than time.
 *
 * @param {State | null} state
 * @param {ClockOptions} options
 * @param {number} nowMs
 * @returns {{ face: ClockFace, sameForMs: number }}
 */
function faceOf(state, options, nowMs) {
  const ms = state && clockMs(state, options, nowMs);
  if (state === null || ms === null) return { face: NO_FACE, sameForMs: Infinity };
  const up = options.shows !== "time" || state.sync_mode === "count_up";
  const { decimals: digits = 0, decimalsBelowMs = Infinity } = options;
  const decimals = ms < decimalsBelowMs ? digits : 0;
  const unitMs = 10 ** (3 - decimals);
  const shownMs = (up ? Math.floor(ms / unitMs) : Math.ceil(ms / unitMs)) * unitMs;
  const toNextMs = unitMs - Math.abs(shownMs - ms);
  const toDecimalsMs = up ? decimalsBelowMs - ms : ms - decimalsBelowMs;
  return {
    face: {
      text: formatClock(ms, { decimals, up }),
      ms: shownMs,
      isRunning: clockMs(state, options, Infinity) !== ms,
      isOver: !up && ms === 0,
    },
    sameForMs: toDecimalsMs >= 0 ? Math.min(toNextMs, toDecimalsMs) : toNextMs,
  };
}

/** @type {Set<ClockView>} those that run, which share one loop of animation frames */
const running = new Set();
/** @type {number | undefined} */
let frame;

/** Go on from frame to frame while there is a clock that runs and somebody who looks at the page. */
function drive() {
  const isNeeded = running.size > 0 && !globalThis.document?.hidden;
  if (isNeeded) frame ??= requestAnimationFrame(onFrame);
  else if (frame !== undefined) frame = void cancelAnimationFrame(frame);
}

function onFrame() {
  frame = undefined;
  drive();
  for (const clock of running) clock.glance();
}

/** Before a page that is looked at again is painted, its clocks are right. */
function onVisibilityChange() {
  drive();
  if (!document.hidden) for (const clock of running) clock.look();
}

/**
 * @param {ClockView} clock
 * @param {boolean} isRunning
 */
function setRunning(clock, isRunning) {
  const before = running.size;
  if (isRunning) running.add(clock);
  else running.delete(clock);
  if (running.size === before) return;
  if (before === 0) globalThis.document?.addEventListener("visibilitychange", onVisibilityChange);
  if (running.size === 0) globalThis.document?.removeEventListener("visibilitychange", onVisibilityChange);
  drive();
}

/** One component's clock: its face is another object only when it looks different. */
export class ClockView {
  #session;
  #options;
  #face = NO_FACE;
  #lookedAtMs = 0;
  #sameUntilMs = 0;
  /** @type {() => void} */
  #onChange = () => {};

  /**
   * @param {Subscription | null} session
   * @param {ClockOptions} options
   */
  constructor(session, options) {
    this.#session = session;
    this.#options = options;
    this.#face = this.#read();
  }

  #read() {
    if (!this.#session) return NO_FACE;
    const nowMs = this.#session.time.now();
    const { face, sameForMs } = faceOf(this.#session.state, this.#options, nowMs);
    this.#lookedAtMs = nowMs;
    this.#sameUntilMs = nowMs + sameForMs;
    return face;
  }

  face = () => this.#face;

  look = () => {
    const face = this.#read();
    setRunning(this, face.isRunning);
    const { text, isRunning, isOver } = this.#face;
    if (face.text === text && face.isRunning === isRunning && face.isOver === isOver) return;
    this.#face = face;
    this.#onChange();
  };

  /** Look, if it may be time for another text. Most frames of most clocks end here. */
  glance() {
    const nowMs = this.#session?.time.now() ?? 0;
    if (nowMs < this.#lookedAtMs || nowMs >= this.#sameUntilMs) this.look();
  }

  /** @param {() => void} onChange */
  subscribe = (onChange) => {
    if (!this.#session) return () => {};
    this.#onChange = onChange;
    const watching = new AbortController();
    for (const type of /** @type {const} */ (["state", "missing", "deleted"])) {
      this.#session.addEventListener(type, this.look, { signal: watching.signal });
    }
    this.look();
    return () => {
      watching.abort();
      setRunning(this, false);
    };
  };
}
