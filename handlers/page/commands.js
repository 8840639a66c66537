/** Commands, and the buttons and keys that send them. */

import { api, sessionId, uuid } from "./api.js";
import { $, say } from "./dom.js";
import { nextStep } from "./wording.js";

let isBusy = false;

/** Send commands, [verb, body] each, one after the other; the first that is refused is the last. */
async function send(...commands) {
  if (isBusy) return;
  isBusy = true;
  try {
    for (const [verb, body = {}] of commands) await api("POST", `v1/sessions/${sessionId}/${verb}`, body);
  } catch (error) {
    say(error.message);
  }
  isBusy = false;
}

const command = (verb, body) => send([verb, body]);

/** A new state often comes before the command's own answer, and a press from then on is meant for that state. */
export function allowNextCommand() {
  isBusy = false;
}

const DOUBLE_CLICK_MS = 300;
let pressedMs = -Infinity;

/**
 * End the turn that is shown, which may no longer be the active one: the request says what was seen, and the server
 * refuses it if that no longer holds. A double click comes after the answer to its first click, so it is caught here.
 */
function switchTurn(state, heir) {
  const sinceMs = performance.now() - pressedMs;
  pressedMs = performance.now();
  if (sinceMs < DOUBLE_CLICK_MS) return;
  const { active_participant_id, version, participants } = state;
  const seen = participants.length > 1 ? { expected_participant_id: active_participant_id } : { expected_version: version };
  command("switch", heir ? { ...seen, next_participant_id: heir } : seen);
}

export function giveTurn(state, participantId) {
  if (state.status === "pending") command("start", { participant_id: participantId });
  else if (state.active_participant_id === participantId) switchTurn(state);
  else switchTurn(state, participantId);
}

/** Seat one more, by the next free name. The name comes first: nobody sees the team without it. */
export function addTeam(state) {
  const id = uuid();
  const taken = Object.values(state.metadata?.names ?? {});
  const nameAt = (place) => `Team ${place < 26 ? String.fromCharCode(65 + place) : place + 1}`;
  let place = state.participants.length;
  while (taken.includes(nameAt(place))) place++;
  send(["annotate", { metadata: { names: { [id]: nameAt(place) } } }], ["seat", { participants: [{ participant_id: id }] }]);
}

let finishTimer;

function finish() {
  const isSure = $("finish-text").textContent !== "Finish";
  clearTimeout(finishTimer);
  $("finish-text").textContent = isSure ? "Finish" : "Sure?";
  if (isSure) command("complete");
  else finishTimer = setTimeout(() => ($("finish-text").textContent = "Finish"), 3000);
}

function onKey(event, keys) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || $("share-dialog").open) return;
  // A control that has the focus handles the space bar itself.
  if (event.key === " " && event.target.closest("a, button")) return;
  const deed = keys[event.key.toLowerCase()];
  if (!deed) return;
  event.preventDefault();
  deed();
}

export function bindControls(link) {
  $("primary").onclick = () => {
    const [, verb] = nextStep(link.state);
    if (verb === "switch") switchTurn(link.state);
    else if (verb) command(verb);
  };
  $("pause").onclick = () => command("pause");
  $("finish").onclick = finish;
  const keys = {
    " ": () => $("primary").hidden || $("primary").click(),
    p: () => link.state && ({ running: () => command("pause"), paused: () => command("resume") })[link.state.status]?.(),
    f: () => $("finish").hidden || finish(),
  };
  addEventListener("keydown", (event) => onKey(event, keys));
  // The space bar is for the turn: a button that was clicked must not take the focus, as one reached by Tab does.
  addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault());
}
