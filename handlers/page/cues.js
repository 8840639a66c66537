/** When a clock should be heard: as it gets low, and at zero. */

const LOW_MS = 20_000;

/** From how much left on a clock that began with `totalMs` (null if nobody knows) is low. */
export const lowMs = (totalMs) => Math.min(LOW_MS, (totalMs ?? Infinity) / 5);

/** What the running clock began with; null where it counts up, or has no end. */
function totalMs(state) {
  const active = state.participants.find((participant) => participant.is_active);
  const total = {
    per_participant: active?.budget_ms,
    per_group: active?.budget_ms,
    per_cycle: state.time_per_cycle_ms,
    global: state.total_time_ms,
  };
  return total[state.sync_mode] ?? null;
}

/**
 * What is to be heard of this state, unless another one comes before.
 *
 * @returns {{kind: "low" | "zero", atMs: number}[]} server time, epoch ms
 */
export function cuesOf(state) {
  const endMs = state.deadline_ms;
  if (endMs === null) return [];
  const total = totalMs(state);
  const low = total === null ? [] : [{ kind: "low", atMs: endMs - lowMs(total) }];
  return [...low, { kind: "zero", atMs: endMs }];
}

const RUN_OUT = ["flagged", "advanced", "expired"];

/** Zeros that these events tell of: the server may be quicker to say so than a timer here. */
export const zerosIn = (events) =>
  events.filter(({ type }) => RUN_OUT.includes(type)).map(({ at }) => ({ kind: "zero", atMs: Date.parse(at) }));
