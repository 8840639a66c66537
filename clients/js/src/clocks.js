/** The clocks: a state holds what remained at `cycle_started_at`; everything else is arithmetic. */

/**
 * For how long the running clock has been running since `cycle_started_at`: 0 unless the session is running.
 *
 * @param {object} state a session's state, as REST and WebSocket carry it
 * @param {number} nowMs server time, epoch ms; here and below
 * @returns {number} ms, never negative: an instant before the beginning gives no time back
 */
export function ranMs(state, nowMs) {
  if (state.status !== "running") return 0;
  return Math.max(0, nowMs - Date.parse(state.cycle_started_at));
}

/**
 * The clock that runs, or stands still while pending or paused.
 *
 * @returns {{kind: string, ms: number} | null} `ms` remains, or in kind "elapsed" has passed; null when the
 *   session is over. A clock that has run out stays at its end until the server says what that means.
 */
export function sessionClock(state, nowMs) {
  if (!state.clock) return null;
  const { kind, remaining_ms, elapsed_ms } = state.clock;
  const ran = ranMs(state, nowMs);
  if (kind === "elapsed") return { kind, ms: Math.min(elapsed_ms + ran, state.max_time_ms ?? Infinity) };
  return { kind, ms: Math.max(0, remaining_ms - ran) };
}

/**
 * What one participant has left: of the own bank in per_participant, of the group's in per_group; of the one
 * clock in global (everybody's) and per_cycle (only of whoever's turn it is).
 *
 * @param {object} participant one of `state.participants`
 * @returns {number | null} ms, or null where the participant has no clock to show
 */
export function remainingMs(state, participant, nowMs) {
  const bank = (spends) => Math.max(0, participant.time_remaining_ms - (spends ? ranMs(state, nowMs) : 0));
  switch (state.sync_mode) {
    case "per_participant":
      return bank(participant.is_active);
    case "per_group":
      return bank(participant.group_id === activeParticipant(state)?.group_id);
    case "per_cycle":
      return participant.is_active ? (sessionClock(state, nowMs)?.ms ?? null) : null;
    case "global":
      return sessionClock(state, nowMs)?.ms ?? null;
    default:
      return null;
  }
}

/**
 * How much time a participant's turns have taken so far, the one that is going on included.
 *
 * @returns {number} ms
 */
export function usedMs(state, participant, nowMs) {
  return participant.time_used_ms + (participant.is_active ? ranMs(state, nowMs) : 0);
}

/**
 * The lap that is being run, in count_up.
 *
 * @returns {{number: number, ms: number} | null} counted from 1; null in the other modes and when it is over
 */
export function currentLap(state, nowMs) {
  if (state.sync_mode !== "count_up" || !state.clock) return null;
  const sinceStart = sessionClock(state, nowMs).ms - state.clock.elapsed_ms;
  return { number: state.lap_count + 1, ms: state.lap_elapsed_ms + sinceStart };
}

/** @returns {object | undefined} the participant whose turn it is */
export function activeParticipant(state) {
  return state.participants.find((participant) => participant.participant_id === state.active_participant_id);
}

/**
 * A clock's face: "4:59", "1:00:00", with decimals "0:09.3".
 *
 * @param {number} ms
 * @param {{decimals?: number, up?: boolean}} [options] what counts down is rounded up, so that it shows zero
 *   only when nothing is left; what counts up is rounded down
 */
export function formatClock(ms, { decimals = 0, up = false } = {}) {
  const unit = 10 ** (3 - decimals);
  const units = up ? Math.floor(ms / unit) : Math.ceil(ms / unit);
  const seconds = Math.floor((units * unit) / 1000);
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(seconds / 60);
  const face = minutes < 60 ? `${minutes}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}`;
  const fraction = decimals ? "." + String(units % 10 ** decimals).padStart(decimals, "0") : "";
  return `${face}:${two(seconds % 60)}${fraction}`;
}
