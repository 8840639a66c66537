/** Commands, and the buttons and keys that send them. */

import { access } from "./access.js";
import { kindly, uuid } from "./api.js";
import { $, say } from "./dom.js";
import { teamName } from "./presets.js";
import { nextStep } from "./wording.js";

const GIVE_UP_MS = 8000;

let isBusy = false;
let session; // the subscription

/**
 * Send commands, [verb, body] each, one after the other; the first that is refused is the last. Not while the connection
 * is lost: what was meant for the clock that is shown should not be done to the one that there is by then.
 */
async function send(...commands) {
  if (isBusy) return;
  if (!session.isCurrent) return say("The server does not answer. Please try again in a moment.");
  isBusy = true;
  try {
    for (const [verb, body] of commands) await session.command(verb, body, { signal: AbortSignal.timeout(GIVE_UP_MS) });
  } catch (error) {
    say(kindly(error));
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

/** Ask what a team that comes late is called; the next free name is as good as any. */
export function askForTeam(state) {
  const taken = Object.values(state.metadata?.names ?? {});
  let place = state.participants.length;
  while (taken.includes(teamName(place))) place++;
  $("team-name").value = teamName(place);
  $("team-dialog").returnValue = "";
  $("team-dialog").showModal();
  $("team-name").select();
}

/** The name comes first: nobody sees the team without it. */
function addTeam() {
  if ($("team-dialog").returnValue !== "add") return;
  const id = uuid();
  const names = { [id]: $("team-name").value.trim() };
  send(["annotate", { metadata: { names } }], ["seat", { participants: [{ participant_id: id }] }]);
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
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  // A control that has the focus handles the space bar itself.
  if (event.key === " " && event.target.closest("a, button")) return;
  const deed = keys[event.key.toLowerCase()];
  if (!deed) return;
  event.preventDefault();
  deed();
}

export function bindControls(subscription) {
  session = subscription;
  $("primary").onclick = () => {
    const [, verb] = nextStep(session.state);
    if (verb === "switch") switchTurn(session.state);
    else if (verb) command(verb);
  };
  $("pause").onclick = () => command("pause");
  $("finish").onclick = finish;
  $("team-dialog").addEventListener("close", addTeam);
  for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("close", () => $("primary").focus());
  const keys = {
    " ": () => $("primary").hidden || $("primary").click(),
    p: () => access.mayControl && ({ running: () => command("pause"), paused: () => command("resume") })[session.state?.status]?.(),
    f: () => $("finish").hidden || finish(),
  };
  addEventListener("keydown", (event) => onKey(event, keys));
  // The space bar is for the turn: a button that was clicked must not take the focus, as one reached by Tab does.
  addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault());
}
