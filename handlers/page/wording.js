/** A session in words: names, whose turn it is, and what the next step is called. */

import { access } from "./access.js";
import { activeParticipant, formatClock } from "./client/index.js";
import { leftMs } from "./left.js";

const NEXT = { per_participant: "End turn", per_group: "Next speaker", per_cycle: "Next", global: "Next", count_up: "Lap" };
export const OVER = { completed: "Finished", expired: "Time is up", cancelled: "Cancelled" };

export const hasBanks = (state) => state.sync_mode === "per_participant" || state.sync_mode === "per_group";
export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export function nameOf(state, participant) {
  const place = state.participants.indexOf(participant) + 1;
  return state.metadata?.names?.[participant.participant_id] ?? `Participant ${place}`;
}

/** Whose turn it is, who is out of time, or how the session ended. The panels must have been drawn. */
export function statusText(state, panels) {
  if (state.status === "pending") return state.participants.length > 1 && access.mayControl ? "Ready. Start, or tap who begins." : "Ready";
  if (state.status === "expired") return outOfTime(state, panels, panels.filter((panel) => panel.isOut(state)));
  if (leftMs(state)) return `${OVER.completed} with ${formatClock(leftMs(state))} left`;
  if (OVER[state.status]) return OVER[state.status];
  const active = activeParticipant(state);
  const flagged = panels.filter((panel) => panel.isTurn(state) && panel.isOut(state));
  let turn = "";
  if (flagged.length) turn = outOfTime(state, panels, flagged);
  else if (active && state.participants.length > 1) turn = `${nameOf(state, active)}’s turn`;
  return state.status === "paused" ? ["Paused", turn].filter(Boolean).join(" · ") : turn || "Running";
}

/** Who is out of time; names nobody if the clock that ran out belongs to all. */
function outOfTime(state, panels, flagged) {
  const isOwn = hasBanks(state) || (state.sync_mode === "per_cycle" && state.status !== "expired");
  if (!isOwn || flagged.length === 0 || (flagged.length > 1 && flagged.length === panels.length)) return OVER.expired;
  const names = flagged.map((panel) => panel.name.textContent).filter(Boolean);
  return names.length ? `${names.join(", ")} ${names.length > 1 ? "are" : "is"} out of time` : OVER.expired;
}

/** The participant that the opener of this page plays, and no more than that. */
export const ownParticipant = (state) =>
  access.mayPlay ? state.participants.find((participant) => participant.participant_id === access.subject) : undefined;

/**
 * The one thing to do next, for the big button, the space bar and a panel whose turn it is: [word, command]; [] where
 * nothing is, or not for the opener of this page.
 */
export function nextStep(state) {
  const [word, verb] = stepOf(state);
  const isAllowed = access.mayControl || (verb === "switch" && ownParticipant(state)?.is_active);
  return isAllowed ? [word, verb] : [];
}

/** What a player waits for; "" where there is nothing to wait for any more, and for those who only watch. */
export function waitText(state) {
  if (!ownParticipant(state) || OVER[state.status]) return "";
  if (state.status === "pending") return "Not started yet";
  const active = activeParticipant(state);
  return state.status === "paused" || !active ? "Paused" : `${nameOf(state, active)}’s turn`;
}

function stepOf(state) {
  if (state.status === "pending") return ["Start", "start"];
  if (state.status === "paused") return ["Resume", "resume"];
  if (state.status !== "running") return [];
  const canSwitch = state.participants.length > 0 || state.sync_mode === "count_up";
  return canSwitch ? [NEXT[state.sync_mode], "switch"] : ["Pause", "pause"];
}
