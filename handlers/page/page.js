/** The page at /: the start page, or one session, drawn from its latest state. */

import { access, learnAccess, sessionId, token } from "./access.js";
import { Lockstep } from "./client/index.js";
import { allowNextCommand, bindControls } from "./commands.js";
import { $, setText, show } from "./dom.js";
import { home } from "./home.js";
import { drawLaps, forgetLaps } from "./laps.js";
import { findLeft } from "./left.js";
import { panelsOf } from "./panels.js";
import { presenceText } from "./presence.js";
import { bindShare, share } from "./share.js";
import { bindSound, hearNothing, hearState, hearTime } from "./sounds.js";
import { OVER, nameOf, nextStep, ownParticipant, statusText, waitText } from "./wording.js";

const HIDDEN_TICK_MS = 1000; // a hidden page has no frames

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
  link.addEventListener("state", ({ detail }) => {
    hearState(detail.state, detail.events, lockstep.time.now());
    draw(detail.state);
  });
  link.addEventListener("missing", () => notice("There is no clock here", "It may have ended, or the link lost a piece on its way."));
  link.addEventListener("presence", drawPresence);
  link.addEventListener("status", drawStatus);
  link.addEventListener("deleted", () => notice("This clock was deleted", "Whoever keeps it has put it away for everybody."));

  $("link").hidden = false;
  bindControls(link);
  bindShare();
  bindSound();
  $("share").onclick = () => share(link.state, access);
  document.addEventListener("visibilitychange", keepAwake);
  setInterval(() => document.hidden && hearTime(lockstep.time.now()), HIDDEN_TICK_MS);
  requestAnimationFrame(frame);
}

function frame() {
  requestAnimationFrame(frame);
  const { state } = link;
  const nowMs = lockstep.time.now();
  hearTime(nowMs);
  if (state?.status !== "running") return;
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
  drawControls(state);
  $("session").dataset.status = state.status;
  $("share").hidden = false;
  drawPresence();
  drawLaps(state);
  findLeft(state, () => draw(link.state));
  keepAwake();
}

/** What the opener of this page may not do is not there; a player's button says what it waits for. */
function drawControls(state) {
  const [word, verb] = nextStep(state);
  const isOver = Boolean(OVER[state.status]);
  const primaryText = word ?? waitText(state);
  setText($("primary-text"), primaryText);
  $("primary").hidden = !primaryText;
  $("primary").disabled = !word;
  $("pause").hidden = !access.mayControl || state.status !== "running" || verb === "pause";
  $("finish").hidden = !access.mayControl || isOver || state.status === "pending";
  $("again").hidden = !isOver || !access.mayMake;
  const own = ownParticipant(state);
  $("watching").hidden = access.mayControl;
  setText($("watching"), own ? `You are ${nameOf(state, own)}.` : "You are watching.");
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
  if (lockstep.status === "online") drawAccess();
  const status = ["deleted", "refused"].includes(link.status) ? link.status : lockstep.status;
  $("link").dataset.status = status;
  setText($("link-text"), LINK_TEXT[status]);
  $("offline").hidden = status !== "offline";
  if (status !== "refused") return;
  if (code === "UNAUTHORIZED") $("notice-again").hidden = true; // by this link, and so there
  notice(...refusal(code, reason));
}

/** Before the first state: what is drawn depends on it. */
function drawAccess() {
  learnAccess(lockstep.access);
  $("notice-again").hidden = !access.mayMake;
  if (!token || !access.mayMake) return;
  for (const id of ["brand", "again", "notice-again"]) $(id).href = `./#token=${token}`;
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
  hearNothing();
  $("share").hidden = true;
  show("notice");
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
