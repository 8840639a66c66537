/** The page at /: the start page, or one session, drawn from its latest state. */

import { sessionId, token } from "./api.js";
import { allowNextCommand, bindControls } from "./commands.js";
import { $, setText, show } from "./dom.js";
import { drawLaps, forgetLaps } from "./laps.js";
import { Lockstep } from "./client/index.js";
import { panelsOf } from "./panels.js";
import { presenceText } from "./presence.js";
import { home } from "./presets.js";
import { nextStep, statusText } from "./wording.js";

let lockstep;
let link; // the subscription to the session
let panels = [];
let drawnSeats;
let drawnTurn;

function follow() {
  try {
    lockstep = new Lockstep(".", { token });
  } catch {
    return notice(...refusal()); // the token in the link is malformed
  }
  lockstep.addEventListener("status", drawStatus);
  link = lockstep.subscribe(sessionId);
  link.addEventListener("state", ({ detail }) => draw(detail.state));
  link.addEventListener("missing", () => notice("There is no clock here", "It may have ended, or the link lost a piece on its way."));
  link.addEventListener("presence", drawPresence);
  link.addEventListener("status", drawStatus);
  link.addEventListener("deleted", () => notice("This clock was deleted", "Whoever keeps it has put it away for everybody."));

  $("link").hidden = false;
  bindControls(link);
  $("share").onclick = share;
  $("copy").onclick = copy;
  $("share-dialog").addEventListener("close", () => $("primary").focus());
  document.addEventListener("visibilitychange", keepAwake);
  requestAnimationFrame(frame);
}

function frame() {
  requestAnimationFrame(frame);
  const { state } = link;
  if (state?.status !== "running") return;
  const nowMs = lockstep.time.now();
  for (const panel of panels) if (panel.isTurn(state)) panel.tick(state, nowMs);
  const face = panels.find((panel) => panel.isTurn(state))?.shown.split(".")[0];
  const title = `${face} · ${$("title").textContent}`;
  if (document.title !== title) document.title = title;
}

function draw(state) {
  allowNextCommand();
  show("session");
  drawSeats(state);
  setText($("title"), state.metadata?.title ?? "Shared clock");
  setText($("version"), `v${state.version}`);
  $("version").title = `Version ${state.version} of this session`;
  document.title = `${$("title").textContent} · Lockstep`;
  const nowMs = lockstep.time.now();
  for (const panel of panels) {
    panel.draw(state);
    panel.tick(state, nowMs);
  }
  setText($("status"), statusText(state, panels));
  if (state.active_participant_id !== drawnTurn) {
    drawnTurn = state.active_participant_id;
    if (drawnTurn) panels.find((panel) => panel.isTurn(state)).element.scrollIntoView({ block: "nearest" });
  }
  const [word, verb] = nextStep(state);
  setText($("primary-text"), word ?? "");
  $("primary").hidden = !word;
  $("pause").hidden = state.status !== "running" || verb === "pause";
  $("finish").hidden = !word || state.status === "pending";
  $("again").hidden = Boolean(word);
  $("session").dataset.status = state.status;
  $("share").hidden = false;
  drawPresence();
  drawLaps(state);
  keepAwake();
}

/** Also its place: where a session has presence, who is here is told on a line of its own. */
function drawPresence() {
  const { state, presence } = link;
  if (!state) return;
  $("presence").hidden = !state.presence;
  setText($("presence"), presenceText(state, presence));
  $("presence").title = $("presence").textContent;
  for (const panel of panels) panel.drawPresence(state, presence);
}

/** Make the panels, and anew where participants have come or left; a button that has the focus keeps it. */
function drawSeats(state) {
  const seats = JSON.stringify([state.epoch, state.participants.map((one) => [one.participant_id, one.group_id])]);
  if (seats === drawnSeats) return;
  drawnSeats = seats;
  const buttons = () => [...$("stage").querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement);
  panels = panelsOf(link);
  $("stage").replaceChildren(...panels.map((panel) => panel.element));
  buttons()[focused]?.focus();
}

const LINK_TEXT = {
  connecting: "Connecting…",
  online: "Connected",
  unsure: "Checking…",
  offline: "Reconnecting…",
  deleted: "Ended",
  refused: "Not connected",
  closed: "Not connected",
};

function drawStatus({ detail: { code, reason } }) {
  const status = ["deleted", "refused"].includes(link.status) ? link.status : lockstep.status;
  $("link").dataset.status = status;
  setText($("link-text"), LINK_TEXT[status]);
  $("offline").hidden = status !== "offline";
  if (status === "refused") notice(...refusal(code, reason));
}

/** Why the server lets nobody in by this link: [title, text]. */
function refusal(code, reason) {
  if (code === "UNAUTHORIZED" && !token) return ["This clock asks for a token", "Ask whoever keeps it for a link of your own."];
  if (code === "UNAUTHORIZED") return ["This link no longer lets you in", `${reason}. Ask for a new link.`];
  if (code === "DISCONNECTED") return ["You were sent away", "Whoever keeps this clock has ended your connection to it."];
  if (code === "FORBIDDEN") return ["This link is for another clock", `${reason}. Ask for the right link.`];
  if (code === "UNSUPPORTED_PROTOCOL") return ["This server is too old for this page", "Load the page again, or tell whoever keeps it."];
  return ["This link is not complete", "Ask for it again, or start a new clock."];
}

function notice(title, text) {
  setText($("notice-title"), title);
  setText($("notice-text"), text);
  setText($("version"), "");
  document.title = `${title} · Lockstep`;
  drawnSeats = undefined;
  forgetLaps();
  $("share").hidden = true;
  show("notice");
}

function share() {
  $("share-url").value = location.href;
  if (token) setText($("share-text"), "Open this link on another screen of yours. Whoever has it can do here what you can.");
  setText($("copy"), "Copy");
  $("share-dialog").showModal();
  $("share-url").select();
}

async function copy() {
  $("share-url").select();
  try {
    await navigator.clipboard.writeText($("share-url").value);
  } catch {
    document.execCommand("copy"); // the clipboard proper exists on https and localhost only
  }
  setText($("copy"), "Copied");
}

let wakeLock;

/** Keep the screen on while the clock runs, if the browser can do that. */
async function keepAwake() {
  const isNeeded = link.state?.status === "running" && !document.hidden;
  if (!isNeeded) return void wakeLock?.release();
  if (wakeLock && !wakeLock.released) return;
  wakeLock = await navigator.wakeLock?.request("screen").catch(() => undefined);
}

if (sessionId === null) home();
else follow();
