/** How much a countdown for all had left when it was finished early. */

import { sessionClock } from "./client/index.js";
import { History } from "./history.js";

const NEEDED = ["status", "clock", "cycle_started_at"];

let known = { end: "", ms: null };
let tell = () => {};

/** In ms; null where the events that are kept do not tell. */
function leftAtEnd(events) {
  let before = {};
  for (const { type, at, changes } of events) {
    if (type !== "completed") before = { ...before, ...changes };
    else return NEEDED.every((name) => name in before) ? (sessionClock(before, Date.parse(at))?.ms ?? null) : null;
  }
  return null;
}

const endOf = (state) => `${state.epoch} ${state.session_completed_at}`;
const history = new History((events, state) => {
  known = { end: endOf(state), ms: leftAtEnd(events) };
  if (known.ms) tell();
});

/** Where `state` is one that was finished early, find out what it had left, and call `onKnown` when that is known. */
export function findLeft(state, onKnown) {
  tell = onKnown;
  if (state.sync_mode === "global" && state.status === "completed") history.show(endOf(state), state);
  else history.forget();
}

/** In ms; null where it is not known, or nothing was left. */
export const leftMs = (state) => (state.status === "completed" && known.end === endOf(state) ? known.ms : null);
