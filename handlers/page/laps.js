/** The list of laps. A state does not carry them, because they are history: they are fetched when their number changes. */

import { api, sessionId } from "./api.js";
import { $ } from "./dom.js";
import { formatClock } from "./client/index.js";

const EVENTS_ASKED = 900; // the server keeps 1,000, and may make more before it answers
const LAPS_AGAIN_MS = 1000;
const LAPS_AGAIN_MAX_MS = 30_000;
let lapsOf; // the state's part that the list is of, or will be once it is fetched
let lapsAsked = 0;
let lapsTimer;

export function drawLaps(state) {
  const isShown = state.sync_mode === "count_up" && state.lap_count > 0;
  $("laps").hidden = !isShown;
  if (!isShown) return forgetLaps();
  const wanted = `${state.epoch} ${state.lap_count}`;
  if (lapsOf === wanted) return;
  lapsOf = wanted;
  fetchLaps(state, LAPS_AGAIN_MS);
}

/** What was asked for is not drawn any more, nor asked for again. */
export function forgetLaps() {
  clearTimeout(lapsTimer);
  lapsAsked++;
  lapsOf = undefined;
}

/** Repeat until it succeeds: this state may be the last one, so no later one might ask again. */
async function fetchLaps(state, againMs) {
  clearTimeout(lapsTimer);
  const asked = ++lapsAsked;
  const events = await history(state.epoch, state.version).catch(() => null);
  if (asked !== lapsAsked) return;
  if (!events) {
    // At random, because everybody who watches may have been refused at once.
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

/** The latest events, including those after `version`. */
async function history(epoch, version) {
  const events = [];
  for (let since = Math.max(0, version - EVENTS_ASKED); since !== null; ) {
    const page = await api("GET", `v1/sessions/${sessionId}/events?since=${since}&epoch=${epoch}`);
    events.push(...page.events);
    since = page.next_since;
  }
  return events;
}
