/** States: which of two is later, and what changes lead to. */

/**
 * Whether one state of a session is later than another. Within an epoch versions rise; an id that was deleted
 * and created again begins at version 1 of a greater epoch. What carries no version is taken as it comes.
 */
export function isNewer(state, than) {
  if (than?.version === undefined || state.version === undefined) return true;
  return state.epoch === than.epoch ? state.version > than.version : state.epoch > than.epoch;
}

/**
 * The state that these changes lead to, as protocol v2 tells them: fields with their new values; of participants
 * those that moved, each with its fields that moved, `removed` where it left; who is new stands at the end.
 *
 * @param {object} state the state before; it stays as it is, and what did not change is shared with it
 * @param {object} changes
 * @returns {object}
 */
export function applyChanges(state, changes) {
  const after = { ...state, ...changes };
  if (!changes.participants) return after;
  const seats = new Map(state.participants.map((participant) => [participant.participant_id, participant]));
  for (const moved of changes.participants) {
    if (moved.removed) seats.delete(moved.participant_id);
    else seats.set(moved.participant_id, { ...seats.get(moved.participant_id), ...moved });
  }
  return { ...after, participants: [...seats.values()] };
}
