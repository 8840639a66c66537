/** The page: presets to begin with, then one session's clocks, drawn from its latest state in each frame. */

import { Lockstep, activeParticipant, currentLap, formatClock, remainingMs, sessionClock, usedMs } from "./lockstep.js";

const $ = (id) => document.getElementById(id);
const sessionId = new URLSearchParams(location.search).get("session");
// Where the server wants tokens a link ends in #token=...: what stands behind the # is in no URL that is requested.
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? undefined;

/* ---- Presets: one for each mode ---- */

const MINUTE_MS = 60_000;

// crypto.randomUUID exists on https and localhost only, and a clock in a local network is neither.
const uuid = () =>
  "10000000-1000-4000-8000-100000000000".replace(/[018]/g, (digit) =>
    (digit ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (digit / 4)))).toString(16),
  );

/** A session's body from {name: fields} for each participant; names are nothing to the server, so metadata has them. */
function session(title, fields, people, groups = {}) {
  const names = { ...groups };
  const participants = Object.entries(people).map(([name, own]) => {
    const participant_id = uuid();
    names[participant_id] = name;
    return { participant_id, ...own };
  });
  return { ...fields, participants, metadata: { title, names } };
}

const PRESETS = {
  chess(minutes, seconds) {
    const bank = { total_time_ms: minutes * MINUTE_MS };
    const fields = { sync_mode: "per_participant", increment_ms: seconds * 1000 };
    return session(`Chess ${minutes} + ${seconds}`, fields, { White: bank, Black: bank });
  },
  quiz(_, seconds) {
    const fields = { sync_mode: "per_cycle", time_per_cycle_ms: seconds * 1000 };
    return session("Quiz rounds", fields, { "Team A": {}, "Team B": {}, "Team C": {}, "Team D": {} });
  },
  debate(minutes) {
    const [pro, con] = [uuid(), uuid()];
    const speaker = (group_id) => ({ group_id, total_time_ms: minutes * MINUTE_MS });
    const people = { "Pro 1": speaker(pro), "Con 1": speaker(con), "Pro 2": speaker(pro), "Con 2": speaker(con) };
    return session("Team debate", { sync_mode: "per_group" }, people, { [pro]: "Pro", [con]: "Con" });
  },
  exam: (minutes) => session("Exam", { sync_mode: "global", total_time_ms: minutes * MINUTE_MS }, {}),
  speedrun: () => session("Speedrun", { sync_mode: "count_up" }, { Runner: {} }),
};

/* ---- Talking to the server ---- */

const KINDLY = {
  CONFLICT: "Somebody else was quicker. This is how it stands now.",
  INVALID_STATE_TRANSITION: "That was already done. This is how it stands now.",
  SESSION_NOT_FOUND: "This clock is no longer kept.",
  RATE_LIMIT_EXCEEDED: "A little slower, please.",
  SESSION_BUSY: "Too many at once: nothing was changed. Please try again.",
  BROKER_UNAVAILABLE: "The server cannot do that at the moment. Please try again soon.",
  // Reasons, which say more than their code does.
  turn: "It is not your turn.",
  scope: "Your link does not let you do that.",
  missing: "This link lets you watch only.",
};

/** The answer's data; what went wrong as an Error whose message can be shown. */
async function api(method, path, body) {
  let response;
  try {
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
    response = await fetch(path, { method, headers, body: JSON.stringify(body), signal: AbortSignal.timeout(8000) });
  } catch {
    throw new Error("The server does not answer. Please try again in a moment.");
  }
  const { data, error } = await response.json().catch(() => ({}));
  if (response.ok) return data;
  const kindly = KINDLY[error?.details?.reason] ?? KINDLY[error?.code];
  throw new Error(kindly ?? error?.message ?? "That did not work. Please try again.");
}

let toastTimer;
function say(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 5000);
}

function show(id) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== id;
}

/* ---- The start page ---- */

function home() {
  show("home");
  for (const option of document.querySelectorAll("[data-preset]")) {
    option.addEventListener("click", async () => {
      const { preset, minutes, seconds } = option.dataset;
      option.setAttribute("aria-busy", "true");
      try {
        const created = await api("POST", "v1/sessions", PRESETS[preset](Number(minutes), Number(seconds)));
        location.assign(`?session=${created.session_id}${location.hash}`);
      } catch (error) {
        say(error.message);
      }
      option.removeAttribute("aria-busy");
    });
  }
}

/* ---- A session in words ---- */

const NEXT = { per_participant: "End turn", per_group: "Next speaker", per_cycle: "Next", global: "Next", count_up: "Lap" };
const OVER = { completed: "Finished", expired: "Time is up", cancelled: "Cancelled" };

const hasBanks = (state) => state.sync_mode === "per_participant" || state.sync_mode === "per_group";
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function nameOf(state, participant) {
  const place = state.participants.indexOf(participant) + 1;
  return state.metadata?.names?.[participant.participant_id] ?? `Participant ${place}`;
}

/** Whose turn it is, or that it has run out; or what became of the session. The panels must have been drawn. */
function statusText(state) {
  if (state.status === "pending") return state.participants.length > 1 ? "Ready. Start, or tap who begins." : "Ready";
  if (state.status === "expired") return outOfTime(state, panels.filter((panel) => panel.isOut(state)));
  if (OVER[state.status]) return OVER[state.status];
  const active = activeParticipant(state);
  const flagged = panels.filter((panel) => panel.isTurn(state) && panel.isOut(state));
  let turn = "";
  if (flagged.length) turn = outOfTime(state, flagged);
  else if (active && state.participants.length > 1) turn = `${nameOf(state, active)}’s turn`;
  return state.status === "paused" ? ["Paused", turn].filter(Boolean).join(" · ") : turn || "Running";
}

/** Whose clock has run out, as far as it is anybody's own. */
function outOfTime(state, flagged) {
  const isOwn = hasBanks(state) || (state.sync_mode === "per_cycle" && state.status !== "expired");
  if (!isOwn || flagged.length === 0 || (flagged.length > 1 && flagged.length === panels.length)) return OVER.expired;
  const names = flagged.map((panel) => panel.name.textContent).filter(Boolean);
  return names.length ? `${names.join(", ")} ${names.length > 1 ? "are" : "is"} out of time` : OVER.expired;
}

/** The one thing to do next, for the big button, the space bar and a lonely panel: [word, command]. */
function nextStep(state) {
  if (state.status === "pending") return ["Start", "start"];
  if (state.status === "paused") return ["Resume", "resume"];
  if (state.status !== "running") return [];
  const canSwitch = state.participants.length > 0 || state.sync_mode === "count_up";
  return canSwitch ? [NEXT[state.sync_mode], "switch"] : ["Pause", "pause"];
}

/* ---- Panels: a clock and those it belongs to ---- */

/** Who shares a panel: nobody where each has a bank, a group its own, and all of them the one clock. */
function circles(state) {
  const key = { per_participant: (participant) => participant.participant_id, per_group: (participant) => participant.group_id };
  const byKey = new Map(hasBanks(state) ? [] : [["all", []]]);
  state.participants.forEach((participant, place) => {
    const id = key[state.sync_mode]?.(participant) ?? "all";
    byKey.set(id, [...(byKey.get(id) ?? []), place]);
  });
  return [...byKey];
}

class Panel {
  constructor([id, places], number) {
    this.id = id;
    this.places = places; // in state.participants, whose order never changes
    this.number = number;
    this.element = $("panel").content.firstElementChild.cloneNode(true);
    const part = (name) => this.element.querySelector(name);
    this.press = part(".press");
    this.name = part(".name");
    this.face = part(".face");
    this.note = part(".note");
    this.fill = part(".bar i");
    this.press.onclick = () => this.onPress();
    this.chips = places.length < 2 ? [] : places.map((place) => this.chip(place));
    for (const chip of this.chips) {
      const item = document.createElement("li");
      item.append(chip);
      part(".members").append(item);
    }
  }

  chip(place) {
    const onclick = () => giveTurn(link.state.participants[place].participant_id);
    return Object.assign(document.createElement("button"), { type: "button", className: "chip", onclick });
  }

  onPress() {
    const state = link.state;
    if (!hasBanks(state) || this.isTurn(state)) $("primary").click();
    else giveTurn(state.participants[this.places[0]].participant_id);
  }

  isTurn(state) {
    return !hasBanks(state) || this.places.some((place) => state.participants[place].is_active);
  }

  isOut(state) {
    if (hasBanks(state)) return state.participants[this.places[0]].has_expired;
    return state.status === "expired" || Boolean(state.is_flagged ?? activeParticipant(state)?.has_expired);
  }

  /** What the face shows, in ms; null when there is nothing left to tell. */
  ms(state, nowMs) {
    if (hasBanks(state)) return remainingMs(state, state.participants[this.places[0]], nowMs);
    const clock = sessionClock(state, nowMs);
    if (clock) return clock.ms;
    if (state.sync_mode !== "count_up") return state.status === "expired" ? 0 : null;
    return state.participants.length ? state.participants.reduce((sum, one) => sum + usedMs(state, one, nowMs), 0) : null;
  }

  totalMs(state) {
    if (hasBanks(state)) return state.participants[this.places[0]].budget_ms;
    const limit = { per_cycle: state.time_per_cycle_ms, global: state.total_time_ms, count_up: state.max_time_ms };
    return limit[state.sync_mode] ?? null;
  }

  /** All that changes with a state only. */
  draw(state) {
    const active = activeParticipant(state);
    const own = state.metadata?.names?.[this.id];
    this.name.textContent = {
      per_participant: () => nameOf(state, state.participants[this.places[0]]),
      per_group: () => own ?? `Team ${this.number}`,
    }[state.sync_mode]?.() ?? (active && this.chips.length ? nameOf(state, active) : "");
    this.name.hidden = !this.name.textContent;
    this.chips.forEach((chip, index) => {
      const participant = state.participants[this.places[index]];
      chip.textContent = nameOf(state, participant);
      chip.setAttribute("aria-current", String(participant.is_active));
      chip.disabled = !["pending", "running"].includes(state.status) || (hasBanks(state) && participant.has_expired);
    });
    const [word] = nextStep(state);
    const isOpen = this.isTurn(state) || (state.status !== "paused" && !this.isOut(state));
    this.press.disabled = !word || !isOpen;
    const deed = this.isTurn(state) ? word : state.status === "pending" ? "begins" : "gets the turn";
    this.press.setAttribute("aria-label", `${this.name.textContent || "Clock"}: ${deed ?? "over"}`);
    this.element.querySelector(".bar").hidden = this.totalMs(state) === null;
  }

  /** All that changes with time. */
  tick(state, nowMs) {
    const ms = this.ms(state, nowMs);
    const totalMs = this.totalMs(state);
    const isUp = state.sync_mode === "count_up";
    const isLow = ms !== null && !isUp && ms < Math.min(20_000, (totalMs ?? Infinity) / 5);
    const decimals = isUp ? 2 : isLow && ms > 0 ? 1 : 0;
    const text = ms === null ? "Done" : formatClock(ms, { decimals, up: isUp });
    this.showFace(text);
    setText(this.note, this.noteText(state, nowMs));
    if (totalMs !== null) this.fill.style.transform = `scaleX(${Math.min(1, (ms ?? 0) / totalMs).toFixed(4)})`;
    const look = this.look(state, isLow);
    if (this.element.dataset.look !== look) this.element.dataset.look = look;
  }

  showFace(text) {
    if (this.shown === text) return;
    this.shown = text;
    const [whole, fraction = ""] = text.split(".");
    setText(this.face.firstElementChild, whole);
    setText(this.face.lastElementChild, fraction && `.${fraction}`);
    // Its width in digits: a colon is about half of one, a fraction is set smaller. The least keeps 0:20 as large as 0:19.9.
    const width = whole.length - whole.split(":").length * 0.45 + 0.45 + (fraction && 0.55 * (fraction.length + 0.5));
    this.face.style.setProperty("--digits", Math.max(4.4, width).toFixed(2));
  }

  look(state, isLow) {
    if (this.isOut(state)) return "out";
    if (state.status === "pending") return "ready";
    if (!this.isTurn(state) || OVER[state.status]) return "waiting";
    return state.status === "paused" ? "held" : isLow ? "low" : "running";
  }

  noteText(state, nowMs) {
    if (this.isOut(state)) return "Out of time";
    const mine = this.places.map((place) => state.participants[place]);
    const turns = mine.reduce((sum, participant) => sum + participant.cycle_count, 0);
    switch (state.sync_mode) {
      case "per_participant":
      case "per_group":
        return plural(turns, "turn");
      case "per_cycle":
        return OVER[state.status] ? plural(turns, "turn") : `Round ${Math.floor(turns / mine.length) + 1}`;
      case "global":
        return state.deadline_ms ? `until ${new Date(state.deadline_ms).toLocaleTimeString([], { timeStyle: "short" })}` : "";
      default: {
        const lap = currentLap(state, nowMs);
        return lap ? `Lap ${lap.number} · ${formatClock(lap.ms, { decimals: 2, up: true })}` : plural(state.lap_count, "lap");
      }
    }
  }
}

// Sixty times a second, but mostly the same text: the browser is spared what has not changed.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/* ---- Commands ---- */

let isBusy = false;
async function command(verb, body = {}) {
  if (isBusy) return;
  isBusy = true;
  try {
    await api("POST", `v1/sessions/${sessionId}/${verb}`, body);
  } catch (error) {
    say(error.message);
  }
  isBusy = false;
}

const DOUBLE_CLICK_MS = 300;
let pressedMs = -Infinity;

/**
 * End the turn that is shown, which need not be the one that is on: the server is told what was seen and refuses
 * if it no longer holds. A double click is quicker than a hand, but slower than the answer, so it is caught here.
 */
function switchTurn(heir) {
  const sinceMs = performance.now() - pressedMs;
  pressedMs = performance.now();
  if (sinceMs < DOUBLE_CLICK_MS) return;
  const { active_participant_id, version, participants } = link.state;
  const seen = participants.length > 1 ? { expected_participant_id: active_participant_id } : { expected_version: version };
  command("switch", heir ? { ...seen, next_participant_id: heir } : seen);
}

function giveTurn(participantId) {
  if (link.state.status === "pending") command("start", { participant_id: participantId });
  else if (link.state.active_participant_id === participantId) switchTurn();
  else switchTurn(participantId);
}

let finishTimer;
function finish() {
  const isSure = $("finish-text").textContent !== "Finish";
  clearTimeout(finishTimer);
  $("finish-text").textContent = isSure ? "Finish" : "Sure?";
  if (isSure) command("complete");
  else finishTimer = setTimeout(() => ($("finish-text").textContent = "Finish"), 3000);
}

const KEYS = {
  " ": () => $("primary").hidden || $("primary").click(),
  p: () => link.state && ({ running: () => command("pause"), paused: () => command("resume") })[link.state.status]?.(),
  f: () => $("finish").hidden || finish(),
};

function onKey(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || $("share-dialog").open) return;
  // A control that has the focus answers the space bar itself.
  if (event.key === " " && event.target.closest("a, button")) return;
  const deed = KEYS[event.key.toLowerCase()];
  if (!deed) return;
  event.preventDefault();
  deed();
}

/* ---- The session page ---- */

let link;
let panels = [];
let drawnEpoch;
let drawnTurn;

function follow() {
  try {
    link = new Lockstep("ws", sessionId, { token });
  } catch {
    return notice(...refusal()); // what should be a token is none
  }
  link.addEventListener("state", ({ detail }) => draw(detail.state));
  link.addEventListener("missing", () => notice("There is no clock here", "It may have ended, or the link lost a piece on its way."));
  link.addEventListener("status", ({ detail }) => drawStatus(detail));
  link.connect();

  $("link").hidden = false;
  $("primary").onclick = () => {
    const [, verb] = nextStep(link.state);
    if (verb === "switch") switchTurn();
    else if (verb) command(verb);
  };
  $("pause").onclick = () => command("pause");
  $("finish").onclick = finish;
  $("share").onclick = share;
  $("copy").onclick = copy;
  addEventListener("keydown", onKey);
  // The space bar is the turn's: a button that was clicked must not keep it, as one reached by Tab does.
  addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault());
  $("share-dialog").addEventListener("close", () => $("primary").focus());
  document.addEventListener("visibilitychange", keepAwake);
  requestAnimationFrame(frame);
}

function frame() {
  requestAnimationFrame(frame);
  const { state } = link;
  if (state?.status !== "running") return;
  const nowMs = link.time.now();
  for (const panel of panels) if (panel.isTurn(state)) panel.tick(state, nowMs);
  const face = panels.find((panel) => panel.isTurn(state))?.shown.split(".")[0];
  const title = `${face} · ${$("title").textContent}`;
  if (document.title !== title) document.title = title;
}

function draw(state) {
  isBusy = false; // it often comes before the command's own answer, and a press now is for what is shown now
  show("session");
  if (state.epoch !== drawnEpoch) {
    drawnEpoch = state.epoch;
    panels = circles(state).map((circle, index) => new Panel(circle, index + 1));
    $("stage").replaceChildren(...panels.map((panel) => panel.element));
  }
  setText($("title"), state.metadata?.title ?? "Shared clock");
  setText($("version"), `v${state.version}`);
  $("version").title = `Version ${state.version} of this session`;
  document.title = `${$("title").textContent} · Lockstep`;
  const nowMs = link.time.now();
  for (const panel of panels) {
    panel.draw(state);
    panel.tick(state, nowMs);
  }
  setText($("status"), statusText(state));
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
  drawLaps(state);
  keepAwake();
}

const LINK_TEXT = {
  connecting: "Connecting…",
  online: "Connected",
  unsure: "Checking…",
  offline: "Reconnecting…",
  gone: "Ended",
  refused: "Not connected",
  closed: "Not connected",
};

function drawStatus({ status, code, reason }) {
  $("link").dataset.status = status;
  setText($("link-text"), LINK_TEXT[status]);
  $("offline").hidden = status !== "offline";
  if (status === "gone") notice("This clock was deleted", "Whoever keeps it has put it away for everybody.");
  if (status === "refused") notice(...refusal(code, reason));
}

/** Why the server lets nobody in by this link: [title, text]. */
function refusal(code, reason) {
  if (code === 4501 && !token) return ["This clock asks for a token", "Ask whoever keeps it for a link of your own."];
  if (code === 4501) return ["This link no longer lets you in", `${reason}. Ask for a new link.`];
  if (code === 4503) return ["This link is for another clock", `${reason}. Ask for the right link.`];
  return ["This link is not complete", "Ask for it again, or start a new clock."];
}

function notice(title, text) {
  setText($("notice-title"), title);
  setText($("notice-text"), text);
  setText($("version"), "");
  document.title = `${title} · Lockstep`;
  drawnEpoch = undefined;
  forgetLaps();
  $("share").hidden = true;
  show("notice");
}

const EVENTS_ASKED = 900; // the server keeps 1,000, and may make more before it answers
const LAPS_AGAIN_MS = 1000;
const LAPS_AGAIN_MAX_MS = 30_000;
let lapsOf; // the state's part that the list is of, or will be once it is fetched
let lapsAsked = 0;
let lapsTimer;
/** Laps are history, which a state does not carry: they are fetched when their number has changed. */
function drawLaps(state) {
  const isShown = state.sync_mode === "count_up" && state.lap_count > 0;
  $("laps").hidden = !isShown;
  if (!isShown) return forgetLaps();
  const wanted = `${state.epoch} ${state.lap_count}`;
  if (lapsOf === wanted) return;
  lapsOf = wanted;
  fetchLaps(state, LAPS_AGAIN_MS);
}

/** Nothing that was asked for is drawn any more, nor asked for again. */
function forgetLaps() {
  clearTimeout(lapsTimer);
  lapsAsked++;
  lapsOf = undefined;
}

/** By a timer until it succeeds: the state may have been the last one, so that none to come would ask again. */
async function fetchLaps(state, againMs) {
  clearTimeout(lapsTimer);
  const asked = ++lapsAsked;
  const events = await history(state.epoch, state.version).catch(() => null);
  if (asked !== lapsAsked) return;
  if (!events) {
    // At random, since all who watch may have been refused at once.
    const waitMs = againMs * (1 + Math.random());
    lapsTimer = setTimeout(fetchLaps, waitMs, state, Math.min(2 * againMs, LAPS_AGAIN_MAX_MS));
    return;
  }
  const laps = events.map((event) => event.lap_ms).filter(Number.isInteger);
  const earlier = Math.max(0, state.lap_count - laps.length); // older than what is kept
  const bestMs = Math.min(...laps);
  const rows = laps.map((ms, index) => {
    const row = document.createElement("li");
    const cells = [`Lap ${earlier + index + 1}`, ms === bestMs && laps.length > 1 ? "fastest" : "", formatClock(ms, { decimals: 2, up: true })];
    row.append(...cells.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
    return row;
  });
  $("laps").replaceChildren(...rows.reverse());
}

/** The latest events, those after `version` too. */
async function history(epoch, version) {
  const events = [];
  for (let since = Math.max(0, version - EVENTS_ASKED); since !== null; ) {
    const page = await api("GET", `v1/sessions/${sessionId}/events?since=${since}&epoch=${epoch}`);
    events.push(...page.events);
    since = page.next_since;
  }
  return events;
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
/** A clock that runs keeps the screen on, where the browser can do that. */
async function keepAwake() {
  const isNeeded = link.state?.status === "running" && !document.hidden;
  if (!isNeeded) return void wakeLock?.release();
  if (wakeLock && !wakeLock.released) return;
  wakeLock = await navigator.wakeLock?.request("screen").catch(() => undefined);
}

if (sessionId === null) home();
else follow();
