/** The clocks: a state holds what remained at `cycle_started_at`; everything else is arithmetic. */

/** @import { Clock, Participant, State } from "./types.js" */

/**
 * The clock that runs, or stands still while pending or paused: `ms` remain, or in kind "elapsed" have passed.
 *
 * @typedef {{ kind: Clock["kind"], ms: number }} ClockReading
 */

/**
 * The lap that is being run: its number, counted from 1, and for how long it has been run.
 *
 * @typedef {{ number: number, ms: number }} Lap
 */

/**
 * For how long the running clock has been running since `cycle_started_at`: 0 unless the session is running.
 *
 * Where running out ends the turn or the session, nothing is charged beyond the deadline: what comes then is for
 * the server to say. With `on_timeout: "flag"` the turn goes on, and so does this.
 *
 * @param {State} state a session's state, as REST and WebSocket carry it
 * @param {number} nowMs server time, epoch ms; here and below
 * @returns {number} ms, never negative: an instant before the beginning gives no time back
 */
export function ranMs(state, nowMs) {
  if (state.status !== "running" || state.cycle_started_at === null) return 0;
  const untilMs = state.on_timeout === "flag" ? nowMs : Math.min(nowMs, state.deadline_ms ?? Infinity);
  return Math.max(0, untilMs - Date.parse(state.cycle_started_at));
}

/**
 * What the session's clock shows.
 *
 * @param {State} state
 * @param {number} nowMs
 * @returns {ClockReading | null} null when the session is over. A clock that has run out stays at its end until the
 *   server says what that means
 */
export function sessionClock(state, nowMs) {
  const { clock } = state;
  if (!clock) return null;
  const ran = ranMs(state, nowMs);
  if (clock.kind === "elapsed") return { kind: clock.kind, ms: clock.elapsed_ms + ran };
  return { kind: clock.kind, ms: Math.max(0, clock.remaining_ms - ran) };
}

/**
 * How long the running clock has been over: 0 unless it has run out and the turn goes on (`on_timeout: "flag"`).
 *
 * It counts from the instant at which the clock ran out. What makes the server reckon anew makes this begin anew
 * too: a resume, an `adjust`, and in global, where it changes nothing else of the clock, a switch.
 *
 * @param {State} state
 * @param {number} nowMs
 * @returns {number} ms
 */
export function overMs(state, nowMs) {
  if (!state.clock || state.clock.kind === "elapsed") return 0;
  return Math.max(0, ranMs(state, nowMs) - state.clock.remaining_ms);
}

/**
 * What one participant has left: of the own bank in per_participant, of the group's in per_group; of the one
 * clock in global (everybody's) and per_cycle (only of whoever's turn it is).
 *
 * @param {State} state
 * @param {Participant} participant one of `state.participants`
 * @param {number} nowMs
 * @returns {number | null} ms, or null where the participant has no clock to show
 */
export function remainingMs(state, participant, nowMs) {
  switch (state.sync_mode) {
    case "per_participant":
      return bankMs(state, participant, participant.is_active, nowMs);
    case "per_group":
      return bankMs(state, participant, participant.group_id === activeParticipant(state)?.group_id, nowMs);
    case "per_cycle":
      return participant.is_active ? (sessionClock(state, nowMs)?.ms ?? null) : null;
    case "global":
      return sessionClock(state, nowMs)?.ms ?? null;
    default:
      return null;
  }
}

/**
 * @param {State} state
 * @param {Participant} participant
 * @param {boolean} isSpent whether the running clock is this bank
 * @param {number} nowMs
 */
function bankMs(state, { time_remaining_ms: leftMs }, isSpent, nowMs) {
  return leftMs === null ? null : Math.max(0, leftMs - (isSpent ? ranMs(state, nowMs) : 0));
}

/**
 * How much time a participant's turns have taken so far, the one that is going on included.
 *
 * @param {State} state
 * @param {Participant} participant one of `state.participants`
 * @param {number} nowMs
 * @returns {number} ms
 */
export function usedMs(state, participant, nowMs) {
  return participant.time_used_ms + (participant.is_active ? ranMs(state, nowMs) : 0);
}

/**
 * The lap that is being run, in count_up.
 *
 * @param {State} state
 * @param {number} nowMs
 * @returns {Lap | null} null in the other modes and when it is over
 */
export function currentLap(state, nowMs) {
  if (state.sync_mode !== "count_up" || !state.clock) return null;
  return { number: state.lap_count + 1, ms: state.lap_elapsed_ms + ranMs(state, nowMs) };
}

/**
 * The participant whose turn it is, also while paused.
 *
 * @param {State} state
 * @returns {Participant | undefined}
 */
export function activeParticipant(state) {
  return state.participants.find((participant) => participant.participant_id === state.active_participant_id);
}

/**
 * A clock's face: "4:59", "1:00:00", with decimals "0:09.3".
 *
 * @param {number} ms
 * @param {{ decimals?: number, up?: boolean }} [options] up to 3 decimals. What counts down is rounded up, so that
 *   it shows zero only when nothing is left; what counts `up` is rounded down
 * @returns {string}
 */
export function formatClock(ms, { decimals = 0, up = false } = {}) {
  const unit = 10 ** (3 - decimals);
  const units = up ? Math.floor(ms / unit) : Math.ceil(ms / unit);
  const seconds = Math.floor((units * unit) / 1000);
  const minutes = Math.floor(seconds / 60);
  const face = minutes < 60 ? `${minutes}` : `${Math.floor(minutes / 60)}:${twoDigits(minutes % 60)}`;
  const fraction = decimals ? "." + String(units % 10 ** decimals).padStart(decimals, "0") : "";
  return `${face}:${twoDigits(seconds % 60)}${fraction}`;
}

/** @param {number} number */
const twoDigits = (number) => String(number).padStart(2, "0");
