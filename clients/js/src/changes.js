/** States: which of two is later, and what changes lead to. */

/** @import { Changes, Participant, State } from "./types.js" */

/**
 * Whether one state of a session is later than another. Within an epoch versions rise; an id that was deleted
 * and created again begins at version 1 of a greater epoch. What carries no version is taken as it comes.
 *
 * @param {Partial<State>} state
 * @param {Partial<State> | null} [than]
 * @returns {boolean}
 */
export function isNewer(state, than) {
  if (than?.version === undefined || state.version === undefined) return true;
  return state.epoch === than.epoch ? state.version > than.version : (state.epoch ?? "") > (than.epoch ?? "");
}

/**
 * The state that these changes lead to, as protocol v2 tells them: fields with their new values; of participants
 * those that moved, each with its fields that moved, `removed` where it left; who is new stands at the end.
 *
 * @param {State} state the state before; it stays as it is, and what did not change is shared with it
 * @param {Changes} changes
 * @returns {State}
 */
export function applyChanges(state, changes) {
  const { participants: moves, ...fields } = changes;
  const after = /** @type {State} */ ({ ...state, ...fields });
  if (!moves) return after;
  const seats = new Map(state.participants.map((participant) => [participant.participant_id, participant]));
  for (const moved of moves) {
    const seat = /** @type {Participant} */ ({ ...seats.get(moved.participant_id), ...moved });
    if (moved.removed) seats.delete(moved.participant_id);
    else seats.set(moved.participant_id, seat);
  }
  return { ...after, participants: [...seats.values()] };
}
